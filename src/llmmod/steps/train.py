"""The step `train`: train as configured, save the model, and pass it to later steps.

The order matters: errors in a path, the data or the arguments are found before the model is loaded, and the seed is set before an adapter
draws its initial weights.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import set_seed

from llmmod.config.schema.steps import PredictConf, TrainConf
from llmmod.distributed import rank, world_size
from llmmod.errors import ConfigError, Problem
from llmmod.files.paths import readable_by_umask, shown
from llmmod.instantiate import locate
from llmmod.models.adapters.base_changing_init import changes_base, save_for_base
from llmmod.models.adapters.precision import to_stored_dtype
from llmmod.models.generation.settings import Reader, set_stop_tokens
from llmmod.models.loading.stage_file import StageFile, write_stage_file
from llmmod.models.reward import set_reward_padding, with_reward_head
from llmmod.protocols import LoadedModel, StepReport
from llmmod.render.export import exported, with_template
from llmmod.reuse.store import Result, Reuse
from llmmod.steps.evaluate import training_metrics, training_summary
from llmmod.steps.plan.figures import SAID, memory_explained
from llmmod.steps.predict.step import check_measured
from llmmod.trainers.arguments import SMOKE_STEPS, engine_arguments, training_arguments
from llmmod.trainers.base import EvaluateEvery, StageTrainer
from llmmod.trainers.build import check_max_steps, check_trainer, release, restored_after_training, trainer_from
from llmmod.trainers.callbacks.interrupt import StopAfterStep, StoppedBetweenSteps, StopWhenNoBetter
from llmmod.trainers.callbacks.progress import TrainingProgress, loss_curve
from llmmod.trainers.callbacks.resume import checkpoints, find_checkpoint, passed_over, settle
from llmmod.trainers.checkpoints import ResumableTrainer, check_processes
from llmmod.trainers.distributed import check_offloading, engine_of, gather_whole
from llmmod.trainers.online.rewards import LINEAGE_ATTRIBUTE
from llmmod.upstream import require_upstream

log = logging.getLogger("llmmod.train")
_CURVE = "training_loss.png"
# Further files of the stages that train on the model's own completions.
_ONLINE_FILES = {
    "the curves of reward and KL are in": "ppo.png",
    "the curves of reward and length are in": "grpo.png",
    "completions with their scores are in": "samples.jsonl",
}


class Train:
    """The step `train`.

    Args:
        conf: `steps.<name>`.
        name: the step's name, and that of its directory.
    """

    def __init__(self, conf: TrainConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Train, save, and pass the model on.

        Raises:
            ConfigError: an argument, a path or the data is wrong.
            RunError: the loss became NaN.
        """
        conf, directory = session.conf(self.name, "training"), session.step_dir(self.name)
        if rank() == 0:
            settle(directory)
        resume, checkpoint = conf.resume_from_checkpoint, None
        if resume is not None:
            checkpoint = find_checkpoint(resume, train_dir=directory, content=rank() == 0)
        splits = session.splits(self.name)
        check_max_steps(conf, splits.train)
        check_trainer(conf.trainer.get("_target_"), splits.train)
        root, has_eval = session.root, splits.eval is not None
        check_offloading(root.distributed, use_cpu=conf.use_cpu)
        engine = engine_arguments(root.distributed)
        args = training_arguments(conf, output_dir=directory, seed=root.seed, smoke=root.smoke, has_eval=has_eval, engine=engine)
        checkpoint = _of_the_first(checkpoint)  # another process may have searched while one was being renamed
        check_processes(checkpoint, args, samples=conf.data_kind == "prompt")
        args.eval_on_start &= checkpoint is None  # a checkpoint's log has that evaluation already
        reuse = Reuse(session, self.name, args=args, data=getattr(splits, "identity", None), checkpoint=checkpoint)
        if (taken := reuse.take()) is not None:
            return self._reused(session, *taken, identity=reuse.identity)
        if torch.cuda.is_available() and not args.use_cpu:
            from llmmod.steps.plan.step import warn_if_too_large  # half a second to import, only needed on a GPU

            warn_if_too_large(session, self.name, bf16=args.bf16)
        with engine_of(args), memory_explained(session, self.name):
            return self._trained(session, args, splits, checkpoint, reuse)

    def _trained(self, session: Any, args: Any, splits: Any, checkpoint: Path | None, reuse: Reuse) -> StepReport:
        """Train, save, and register the model."""
        conf, directory = session.conf(self.name, "training"), session.step_dir(self.name)
        answer, every = self._predictor(session)
        model = self._initial_model(session, seed=args.seed)
        session.put(SAID, _of_the_first(session.get(SAID)))  # each process can run out of memory
        progress, stop = TrainingProgress(bar=False if conf.disable_tqdm else None), StopAfterStep(several=world_size() > 1)
        with restored_after_training(model):
            trainer = trainer_from(
                conf,
                model=model,
                args=args,
                train=splits.train,
                evaluation=splits.eval,
                tokenizer=with_template(*exported(session.render(self.name), session.tokenizer(self.name))),
                callbacks=[progress, stop, *_evaluating(conf, every if answer else None)],
                loraplus_lr_ratio=getattr(session.conf(self.name, "finetune"), "loraplus_lr_ratio", None),
                reader=Reader.of(session.render(self.name), session.tokenizer(self.name)) if conf.data_kind == "prompt" else None,
            )
            trainer.answer_held_out, trainer.predict_steps = answer, every
            if conf.head == "reward":
                set_reward_padding(trainer.model, trainer.processing_class, stop_ids=session.render(self.name).stop_ids)
            stop.stops_at_end = not isinstance(trainer, ResumableTrainer)
            with loss_curve(lambda: trainer.state, directory / _CURVE):
                if rank() == 0 and conf.resume_from_checkpoint:
                    _tell_where_it_begins(directory, checkpoint)
                _train(trainer, checkpoint, stop, progress, key=self._resume_key(session))
            if to_stored_dtype(trainer.model) and trainer.eval_dataset is not None:
                trainer.evaluate()  # of the saved model, which rounding has changed
            metrics = training_metrics(trainer, tokens_per_second=progress.tokens_per_second(trainer.state))
            release(trainer)
        gather_whole(trainer)
        trainer.save_model(str(directory))
        trainer.save_state()
        kind = "adapter" if hasattr(trainer.model, "peft_config") else "full"
        if trainer.args.should_save:
            save_for_base(trainer.model, directory)
            readable_by_umask(directory)  # also value heads and an adapter's base
            write_stage_file(directory, self._stage_file(session, kind))
        reuse.keep(metrics=metrics, kind=kind)
        sharded = bool(args.fsdp or args.deepspeed)  # then later steps load the saved model
        left = None if sharded else trainer.model
        result = LoadedModel(left, kind=kind, head=conf.head, trained=True, path=directory, identity=reuse.identity)
        if sharded:
            trainer.accelerator.wait_for_everyone()
            session.register_saved(self.name, result)
        else:
            session.register_trained(self.name, result, base_intact=_keeps_base(session.conf(self.name, "finetune")))
            session.put("trainer", trainer)
        return self._report(metrics, kind, directory)

    def _reused(self, session: Any, result: Result, place: Path, *, identity: str | None) -> StepReport:
        """Register and report a model that an earlier run trained from the same inputs."""
        directory, head = session.step_dir(self.name), session.conf(self.name, "training").head
        session.register_reused(self.name, LoadedModel(None, kind=result.kind, head=head, trained=True, path=directory, identity=identity))
        reused = f"{self.name}: reused, since its inputs haven't changed since {result.ended}: {shown(place)}"
        if rank() == 0:
            log.info(reused)
        report = self._report(dict(result.metrics), result.kind, directory)
        report.summary.insert(0, reused)
        report.reused_from = str(place)
        return report

    def _predictor(self, session: Any) -> tuple[Any, int]:
        """The function that answers held-out prompts during training, or None; and its interval in optimizer steps.

        Raises:
            ConfigError: there are no held-out examples, the trainer can't do it, or it doesn't measure the metric of the best model.
        """
        conf, root = session.conf(self.name, "training"), session.root
        if conf.predict_steps is None:
            return None, 1
        if not issubclass(locate(conf.trainer["_target_"]), StageTrainer):
            do = "Derive it from llmmod.trainers.base.StageTrainer"
            raise ConfigError(Problem("training.predict_steps", f"{conf.trainer['_target_']} can't answer prompts during training", do=do))
        predict = root.steps.get("predict")
        node = dict(conf.predict)
        made = locate(node.pop("_target_"))(predict if isinstance(predict, PredictConf) else PredictConf(), self.name, **node)
        check_measured(conf.metric_for_best_model, made.conf.metrics)
        return made.while_training(session), min(conf.predict_steps, SMOKE_STEPS) if root.smoke else conf.predict_steps

    def _initial_model(self, session: Any, *, seed: int) -> Any:
        """The model at the start of the training, with its adapter or with the trained layers unfrozen."""
        base, finetune = session.base_model(self.name), session.conf(self.name, "finetune")
        set_stop_tokens(base, stop_ids=session.render(self.name).stop_ids, pad_id=session.tokenizer(self.name).pad_token_id)
        set_seed(seed)
        if session.conf(self.name, "training").head == "reward":
            base = with_reward_head(base, seed=seed)
        setattr(base, LINEAGE_ATTRIBUTE, session.training_lineage(self.name).resolve(session.step_dir(self.name)))
        return locate(finetune._target_)(base, finetune)

    def _resume_key(self, session: Any) -> str:
        """The key that resumes an interrupted training."""
        own = getattr(session.root.steps.get(self.name), "training", None) is not None
        return f"steps.{self.name}.training.resume_from_checkpoint" if own else "training.resume_from_checkpoint"

    def _stage_file(self, session: Any, kind: str) -> StageFile:
        training, render = session.conf(self.name, "training"), session.conf(self.name, "render").name
        return StageFile(training.stage, kind, training.head, render=render, **session.training_lineage(self.name)._asdict())

    def _report(self, metrics: dict[str, float], kind: str, directory: Path) -> StepReport:
        artifacts = {kind if kind == "adapter" else "model": self.name, "trainer_state": f"{self.name}/trainer_state.json"}
        summary = [f"{self.name}: {training_summary(metrics)}"]
        if (directory / _CURVE).is_file():
            artifacts["training_loss"] = f"{self.name}/{_CURVE}"
            summary.append(f"{self.name}: the loss curve is {directory / _CURVE}")
        for what, file in _ONLINE_FILES.items():
            if (directory / file).is_file():
                artifacts[Path(file).stem] = f"{self.name}/{file}"
                summary.append(f"{self.name}: {what} {directory / file}")
        return StepReport(metrics, artifacts, summary)


def _keeps_base(finetune: Any) -> bool:
    """Whether the model's own weights under the adapter stay as they were loaded."""
    adapters = getattr(finetune, "adapters", [])
    merged = adapters[:-1] if getattr(finetune, "resume_adapter", False) else adapters
    upcast = any(getattr(finetune, name, False) for name in ("upcast_layernorm", "upcast_head"))
    return not merged and not upcast and not changes_base(getattr(finetune, "init_lora_weights", None))


def _evaluating(conf: Any, every: int | None) -> list[Any]:
    """The callbacks for early stopping and for answering held-out prompts."""
    stopping = conf.early_stopping_patience is not None
    found: list[Any] = [StopWhenNoBetter(conf.early_stopping_patience, conf.early_stopping_threshold)] if stopping else []
    return found if every is None else [*found, EvaluateEvery(every)]


def _of_the_first(found_here: Any) -> Any:
    """What the first of several processes found."""
    found = [found_here]
    if world_size() > 1:
        broadcast_object_list(found)
    return found[0]


def _tell_where_it_begins(directory: Path, checkpoint: Path | None) -> None:
    for later, damage in passed_over(directory if checkpoint is None else checkpoint.parent, checkpoint).items():
        log.warning("%s is skipped: %s", later, damage)
    if checkpoint is None:
        log.warning("%s doesn't have a complete checkpoint, so the training starts from the beginning", directory)
    else:
        log.info("resuming from %s", checkpoint)


def _train(trainer: Any, checkpoint: Path | None, stop: StopAfterStep, progress: TrainingProgress, *, key: str) -> None:
    """Train to the end, or to the end of the step during which a signal arrives; then the previous handler gets the signal."""
    try:
        with stop:
            try:
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            except StoppedBetweenSteps:
                progress.close()
                if stop.caught is None:
                    log.warning("all steps are trained already: %s is the checkpoint of the last step", checkpoint)
            if stop.caught is not None:
                _save_interrupted(trainer, key)
    except BaseException:
        # For the report; an error here must not hide the original one.
        with suppress(Exception):
            if trainer.is_world_process_zero():
                trainer.save_state()
        raise
    finally:
        progress.close()


def _save_interrupted(trainer: Any, key: str) -> None:
    """Write a checkpoint of an interrupted training, unless this step has one."""
    directory = Path(trainer.args.output_dir)
    wanted = directory / f"checkpoint-{trainer.state.global_step}"
    if trainer.state.global_step and wanted not in checkpoints(directory):
        require_upstream(__name__)
        trainer._save_checkpoint(trainer.model, trial=None)
    if kept := checkpoints(directory):
        log.warning("interrupted; %s=%s resumes from here", key, kept[-1])

"""The best model of a training: the metric that selects it, and the times at which it is measured.

A metric that the evaluations don't measure is refused with the nearest names. The measures of a user's own metric or trainer are unknown
before it runs; such names are checked later: metrics of answers before the model is loaded, others at the first evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmmod.config.schema.training import ANSWERS, CONTINUES
from llmmod.config.step_parts import Context
from llmmod.config.validate.training import evaluates_nothing
from llmmod.errors import Problem, did_you_mean

_GENERATED = "predict_"
_PREFERENCES = (
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected",
    "entropy",
)  # fmt: skip
# Trainer -> the metrics of its evaluation; a name that ends in a slash stands for all names that begin with it.
MEASURED: Mapping[str, tuple[str, ...]] = {
    "llmmod.trainers.sft.SftTrainer": ("loss", "perplexity", "token_accuracy"),
    "llmmod.trainers.rm.RmTrainer": ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward"),
    "llmmod.trainers.preference.dpo.DpoTrainer": (*_PREFERENCES, "rewards/accuracies", "mean_token_accuracy"),
    "llmmod.trainers.preference.kto.KtoTrainer": (*_PREFERENCES, "kl"),
    "llmmod.trainers.ppo.trainer.PpoTrainer": ("reward", "reward_se", "score", "kl", "answer_length", "terminated", "rewards/"),
    "llmmod.trainers.online.grpo.GrpoTrainer": ("reward", "reward_se", "kl", "entropy", "rewards/", "completions/"),
}  # fmt: skip
# Metric of answers -> what it measures.
OF_ANSWERS: Mapping[str, tuple[str, ...]] = {
    "llmmod.metrics.Rouge": ("rouge-1", "rouge-2", "rouge-l"),
    "llmmod.metrics.Bleu": ("bleu-4",),
    "llmmod.metrics.Exact": ("exact",),
    "llmmod.metrics.Length": ("words",),
    "llmmod.metrics.Repetition": ("repeated-4-grams",),
}
_SHARDED = ("fsdp", "deepspeed_zero3")  # engines that shard the parameters
_BY_PLATEAU = ("reduce_lr_on_plateau", "greedy")  # schedules that use a metric of every evaluation


def check_best_model(context: Context) -> Iterator[Problem]:
    """A problem for each metric that isn't measured, and for each evaluation whose model could not be saved as the best one."""
    for place in context.places("training"):
        training = context.get(place) or {}
        if not any(context.trains(step) and context.part(step, "training") == place for step in context.steps):
            continue
        yield from _metric(context, place, training)
        yield from _predictions(context, place, training)
        evaluated = training.get("eval_strategy") != "no" or training.get("predict_steps") is not None
        if training.get("early_stopping_patience") is not None and not evaluated:
            found = f"set with {place}.eval_strategy=no, so it doesn't have an evaluation to compare"
            yield Problem(f"{place}.early_stopping_patience", found, do=f"Set {place}.eval_strategy to steps or epoch")


def _metric(context: Context, place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    """Whether the metric is measured, as far as that is known."""
    wanted, key = training.get("metric_for_best_model"), f"{place}.metric_for_best_model"
    trainer = training.get("trainer") or {}
    known = MEASURED.get(str(trainer.get("_target_")))
    if wanted is None or known is None or trainer.get("compute_metrics"):
        return
    name = str(wanted).removeprefix("eval_")
    of_texts, any_text = _names(training.get("metrics"))
    answered, any_answer = _names(context.get("steps.predict.metrics"))
    generated = [f"{_GENERATED}{answer}" for answer in answered] if _answers(training) else []
    measured = [*(one for one in known if not one.endswith("/")), *of_texts, *generated]
    if name in measured or name.startswith(tuple(one for one in known if one.endswith("/"))):
        if name in generated and training.get("predict_steps") is None:
            found = f"{wanted}, but the model doesn't answer prompts in training"
            yield Problem(key, found, do=f"Set {place}.predict_steps")
    elif not (any_text or (any_answer and name.startswith(_GENERATED) and _answers(training))):
        found = f"{wanted}, which this stage's evaluations don't measure"
        yield Problem(key, found, did_you_mean(name, measured), f"Known: {', '.join(measured)}")


def _names(metrics: Any) -> tuple[list[str], bool]:
    """The names that metrics measure, and whether one of the metrics is the user's own, which may measure anything."""
    targets = [str(node.get("_target_")) for node in (metrics or {}).values() if isinstance(node, dict)]
    return [name for target in targets for name in OF_ANSWERS.get(target, ())], any(target not in OF_ANSWERS for target in targets)


def _answers(training: Mapping[str, Any]) -> bool:
    return (training.get("predict") or {}).get("_target_") == ANSWERS


def _predictions(context: Context, place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem for each setting that contradicts the steps at which prompts are answered."""
    steps, key = training.get("predict_steps"), f"{place}.predict_steps"
    if steps is None:
        return
    if (training.get("predict") or {}).get("_target_") not in (ANSWERS, CONTINUES):
        yield Problem(key, f"set, but the model of {place}.stage={training.get('stage')} doesn't write", do="Leave it out")
        return
    if evaluates_nothing(context, place):
        yield Problem(key, "set, but examples to answer are not held out", do="Set dataset.val_size")
        return
    if (engine := context.get("distributed.name")) in _SHARDED:
        found = f"set, but with distributed={engine} a process doesn't have the whole model that would answer"
        yield Problem(key, found, do="Leave it out, or set distributed=ddp")
        return
    saves, every = training.get("save_strategy"), training.get("save_steps")
    if training.get("load_best_model_at_end") and saves != "best":
        at_steps = saves == "steps" and isinstance(every, int | float) and every >= 1
        if not at_steps or steps % every:
            when = f"every {every:g} steps" if at_steps else f"by {place}.save_strategy={saves}"
            found = f"{steps}, but checkpoints are written {when}, so the best model might not be saved"
            yield Problem(key, found, do=f"Set {place}.save_strategy=best, or a multiple of save_steps")
    by_answers = str(training.get("metric_for_best_model")).removeprefix("eval_").startswith(_GENERATED)
    if by_answers and training.get("lr_scheduler_type") in _BY_PLATEAU and training.get("eval_strategy") != "no":
        at_each = training.get("eval_strategy") == "steps" and (training.get("eval_steps") or 0) % steps == 0 and training.get("eval_steps")
        if not at_each:
            found = f"{steps}, but {place}.lr_scheduler_type={training['lr_scheduler_type']} needs the answers' metric at every evaluation"
            yield Problem(key, found, do=f"Set {place}.eval_strategy=no, or eval_steps={steps}")

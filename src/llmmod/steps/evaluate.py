"""The step `evaluate`, and the metrics of a training: which ones metrics.json has, and what the end of a run says of them.

It measures the model that was just trained, or the one that was loaded, on the held-out examples. With
`training.predict_with_generate=true` it also runs the predict step, as transformers' Seq2SeqTrainer does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmmod.config.schema.steps import EvaluateConf, PredictConf
from llmmod.models.generation.settings import Reader, set_stop_tokens
from llmmod.models.loading.structure import base_model
from llmmod.protocols import StepReport
from llmmod.steps.predict.step import Predict, held_out_examples
from llmmod.trainers.arguments import training_arguments
from llmmod.trainers.build import release, restored_after_training, trainer_from
from llmmod.trainers.online.rewards import LINEAGE_ATTRIBUTE

# Every evaluation has one of these.
_MAIN = ("eval_loss", "eval_reward")
# Metrics whose value before the training is reported too.
_COMPARED = (
    *_MAIN, "eval_reward_se", "eval_token_accuracy", "eval_accuracy", "eval_margin", "eval_rewards/accuracies", "eval_rewards/margins",
)  # fmt: skip
_OF_TRAINING = ("train_loss", "train_runtime", "train_steps_per_second")
# Ends of the names of metrics that depend on the machine rather than on the model.
_TIMES = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")
# Metrics in a summary: name -> what it is called, its format.
_SUMMARY = {
    "eval_loss": ("loss", ".4f"),
    "eval_perplexity": ("perplexity", ".3f"),
    "eval_token_accuracy": ("token accuracy", ".1%"),
    "eval_accuracy": ("accuracy", ".1%"),
    "eval_margin": ("margin", ".3f"),
    "eval_rewards/accuracies": ("accuracy", ".1%"),
    "eval_rewards/margins": ("margin", ".3f"),
    "eval_score": ("score", ".3f"),
    "eval_reward": ("reward", ".3f"),
    "eval_kl": ("KL", ".2f"),
    # `training.metrics`, in percent except for the words.
    "eval_rouge-l": ("ROUGE-L", ".1f"),
    "eval_exact": ("exact answers", ".1f"),
    "eval_words": ("words an answer", ".1f"),
    "eval_repeated-4-grams": ("repeated 4-grams", ".1f"),
}
# Metrics that a summary has even if there is no value from before the training.
_ALWAYS = {"eval_loss": "loss on held-out examples", "eval_reward": "reward on held-out prompts"}


class Evaluate:
    """The step `evaluate`.

    Args:
        conf: `steps.<name>`.
        name: the step's name.
    """

    def __init__(self, conf: EvaluateConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Measure `eval_loss` and what else the stage's trainer measures, e.g. `eval_perplexity` and `eval_token_accuracy`.

        Raises:
            ConfigError: there are no held-out examples.
        """
        examples = held_out_examples(session, self.name)
        metrics = self._metrics(session, examples)
        counted = f"{len(examples)} held-out examples" if hasattr(examples, "__len__") else "the held-out examples"
        report = StepReport(metrics, summary=[f"{self.name}: {evaluation_summary(metrics)} on {counted}"])
        if getattr(session.conf(self.name, "training"), "predict_with_generate", False):  # only stages with a language model have it
            conf = session.root.steps.get("predict")
            predicted = Predict(conf if isinstance(conf, PredictConf) else PredictConf(), self.name).run(session)
            report.metrics |= predicted.metrics
            report.artifacts |= predicted.artifacts
            report.summary += predicted.summary
        return report

    def _metrics(self, session: Any, examples: Any) -> dict[str, float]:
        loaded, last_trainer = session.model(self.name), session.get("trainer")
        model = loaded.model
        just_trained = last_trainer is not None and last_trainer.model is model and last_trainer.eval_dataset is examples
        if just_trained and (known := last_evaluation(last_trainer)):
            return known
        conf, tokenizer = session.conf(self.name, "training"), session.tokenizer(self.name)
        args = training_arguments(conf, output_dir=session.step_dir(self.name), seed=session.root.seed, smoke=session.root.smoke)
        args.max_steps = 1  # nothing is trained, but a streamed dataset needs it
        reader = None
        if conf.data_kind == "prompt":
            reader = Reader.of(session.render(self.name), tokenizer)
            set_stop_tokens(model, stop_ids=session.render(self.name).stop_ids, pad_id=tokenizer.pad_token_id)
            # A reward adapter may use the base model only if it was trained on the same; whole weights have changed since.
            lineage = None if loaded.kind == "full" else session.base_lineage(self.name).resolve(session.step_dir(self.name))
            setattr(base_model(model), LINEAGE_ATTRIBUTE, lineage)
        with restored_after_training(model):
            trainer = trainer_from(conf, model=model, args=args, train=examples, evaluation=examples, tokenizer=tokenizer, reader=reader)
            metrics = evaluation_metrics(trainer.evaluate())
            release(trainer)
        return metrics


def training_metrics(trainer: Any, *, tokens_per_second: float | None = None) -> dict[str, float]:
    """The metrics of a finished training.

    Args:
        trainer: after `train()`.
        tokens_per_second: during training only, if it is known.

    Returns:
        `train_loss` (mean over the steps of this run), `train_runtime` (seconds), `train_steps_per_second`, `train_tokens_per_second`.
        With held-out examples also those of an evaluation, `eval_loss` and so on. If there was an evaluation before the first step, also
        `eval_loss_before`, `eval_accuracy_before`, `eval_reward_before` and the like, and those of `training.metrics`.
    """
    history = trainer.state.log_history
    last: dict[str, Any] = next((entry for entry in reversed(history) if "train_loss" in entry), {})
    metrics: dict[str, float] = {name: float(last[name]) for name in _OF_TRAINING if name in last}
    if tokens_per_second is not None:
        metrics["train_tokens_per_second"] = tokens_per_second
    if trainer.eval_dataset is None:
        return metrics
    first: dict[str, Any] = next((entry for entry in history if any(name in entry for name in _MAIN) and entry.get("step") == 0), {})
    compared = (*_COMPARED, *getattr(trainer, "compared", ()), *(name for name in first if name.startswith("eval_predict_")))
    before = {f"{name}_before": float(first[name]) for name in compared if name in first}
    return metrics | before | (last_evaluation(trainer) or evaluation_metrics(trainer.evaluate()))


def last_evaluation(trainer: Any) -> dict[str, float]:
    """The evaluation that the trainer logged after its last step; empty if it did none, or if the model is a different one since."""
    state = trainer.state
    logged = [entry for entry in state.log_history if any(name in entry for name in _MAIN) and entry.get("step") == state.global_step]
    # Then the weights are those of the best checkpoint, not of the last step.
    if not logged or not state.global_step or trainer.args.load_best_model_at_end:
        return {}
    return evaluation_metrics(logged[-1])


def evaluation_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation that measure the model, without times."""
    return {name: float(value) for name, value in metrics.items() if name.startswith("eval_") and not name.endswith(_TIMES)}


def evaluation_summary(metrics: Mapping[str, float]) -> str:
    """`loss 0.5123, accuracy 88.9%`."""
    return ", ".join(f"{text} {_number(metrics, name)}" for name, (text, _) in _SUMMARY.items() if name in metrics)


def training_summary(metrics: Mapping[str, float]) -> str:
    """`training loss 0.2100; loss on held-out examples 0.6931 before, 0.5123 after; accuracy 50.0% before, 88.9% after`."""
    parts = [f"training loss {metrics['train_loss']:.4f}"] if "train_loss" in metrics else ["no step was left to train"]
    for name, (text, _) in _SUMMARY.items():
        has_before = f"{name}_before" in metrics
        if name in metrics and (has_before or name in _ALWAYS):
            earlier = f"{_number(metrics, name, '_before')} before, " if has_before else ""
            parts.append(f"{_ALWAYS.get(name, text)} {earlier}{_number(metrics, name)} after")
            if name == "eval_reward" and "eval_kl" in metrics:
                each = "an answer" if "eval_answer_length" in metrics else "a token"  # ppo's unit, and trl's
                parts[-1] += f", at a KL of {metrics['eval_kl']:.2f} nats {each}"
    return "; ".join(parts)


def _number(metrics: Mapping[str, float], name: str, when: str = "") -> str:
    """The formatted value, with its standard error if there is one."""
    _, form = _SUMMARY[name]
    error = metrics.get(f"{name}_se{when}")
    return f"{metrics[name + when]:{form}}" + ("" if error is None else f" ± {error:{form}}")

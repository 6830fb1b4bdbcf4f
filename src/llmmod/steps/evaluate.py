"""What the stage measures on the held-out examples: of what was just trained, or of the model as it was loaded.

With `training.predict_with_generate=true` also what the predict step measures, as transformers' Seq2SeqTrainer does.

Metrics in words, as the end of a run tells them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmmod.config.schema.steps import EvaluateConf, PredictConf
from llmmod.models.generation.settings import Reader, set_stop_tokens
from llmmod.models.loading.structure import base_model
from llmmod.protocols import LoadedModel, StepReport
from llmmod.steps.predict.step import Predict, held_out_examples
from llmmod.trainers.arguments import training_arguments
from llmmod.trainers.build import release, restored_after_training, trainer_from
from llmmod.trainers.measures import evaluation_metrics, last_evaluation
from llmmod.trainers.online.rewards import LINEAGE_ATTRIBUTE

# Of a stage's metrics, the ones that are told, and how.
_NAMES = {
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
    # Of answers, `training.metrics`: percent, but for the words.
    "eval_rouge-l": ("ROUGE-L", ".1f"),
    "eval_exact": ("exact answers", ".1f"),
    "eval_words": ("words an answer", ".1f"),
    "eval_repeated-4-grams": ("repeated 4-grams", ".1f"),
}


def evaluation_summary(metrics: Mapping[str, float]) -> str:
    """`loss 0.5123, accuracy 88.9%`."""
    return ", ".join(f"{text} {_number(metrics, name)}" for name, (text, _) in _NAMES.items() if name in metrics)


def training_summary(metrics: Mapping[str, float]) -> str:
    """`training loss 0.2100; loss on held-out examples 0.6931 before, 0.5123 after; accuracy 50.0% before, 88.9% after`."""
    told = [f"training loss {metrics['train_loss']:.4f}"] if "train_loss" in metrics else ["no step was left to train"]
    for name, (text, _) in _NAMES.items():
        has_before = f"{name}_before" in metrics
        if name in metrics and (has_before or name in _ALWAYS):
            earlier = f"{_number(metrics, name, '_before')} before, " if has_before else ""
            told.append(f"{_ALWAYS.get(name, text)} {earlier}{_number(metrics, name)} after")
            if name == "eval_reward" and "eval_kl" in metrics:
                each = "an answer" if "eval_answer_length" in metrics else "a token"  # as ppo counts, and as trl does
                told[-1] += f", at a KL of {metrics['eval_kl']:.2f} nats {each}"
    return "; ".join(told)


def _number(metrics: Mapping[str, float], name: str, when: str = "") -> str:
    """With its standard error, where it has one."""
    _, form = _NAMES[name]
    error = metrics.get(f"{name}_se{when}")
    return f"{metrics[name + when]:{form}}" + ("" if error is None else f" ± {error:{form}}")


# What is told with nothing to compare with, too, and of what it is.
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
        """Measure `eval_loss` and whatever else the stage's trainer does: `eval_perplexity` and `eval_token_accuracy` where a model writes.

        Raises:
            ConfigError: there are no held-out examples.
        """
        examples = held_out_examples(session, self.name)
        metrics = self._metrics(session, examples)
        report = StepReport(metrics, summary=[f"{self.name}: {evaluation_summary(metrics)} on {_counted(examples)}"])
        if getattr(session.conf(self.name, "training"), "predict_with_generate", False):  # of the stages that write
            answered = Predict(_predict_conf(session), self.name).run(session)
            report.metrics |= answered.metrics
            report.artifacts |= answered.artifacts
            report.summary += answered.summary
        return report

    def _metrics(self, session: Any, examples: Any) -> dict[str, float]:
        loaded, trained_by = session.model(self.name), session.get("trainer")
        model = loaded.model
        current = trained_by is not None and trained_by.model is model and trained_by.eval_dataset is examples
        if current and (known := last_evaluation(trained_by)):
            return known
        conf = session.conf(self.name, "training")
        args = training_arguments(conf, output_dir=session.step_dir(self.name), seed=session.root.seed, smoke=session.root.smoke)
        args.max_steps = 1  # of a training that doesn't take place; a streamed dataset asks for it
        reader = None
        if conf.data_kind == "prompt":
            reader = Reader.of(session.render(self.name), session.tokenizer(self.name))
            set_stop_tokens(model, stop_ids=session.render(self.name).stop_ids, pad_id=session.tokenizer(self.name).pad_token_id)
            self._tell_beginning(loaded, session)
        with restored_after_training(model):
            trainer = trainer_from(
                conf, model=model, args=args, train=examples, evaluation=examples, tokenizer=session.tokenizer(self.name), reader=reader
            )
            metrics = evaluation_metrics(trainer.evaluate())
            release(trainer)
        return metrics

    def _tell_beginning(self, loaded: LoadedModel, session: Any) -> None:
        """Have the model say what is under its adapter, by which a reward adapter is known to fit there; whole weights are that no more."""
        model = loaded.model
        base = base_model(model)
        known = None if loaded.kind == "full" else session.base_lineage(self.name).resolve(session.step_dir(self.name))
        setattr(base, LINEAGE_ATTRIBUTE, known)


def _predict_conf(session: Any) -> PredictConf:
    found = session.root.steps.get("predict")
    return found if isinstance(found, PredictConf) else PredictConf()


def _counted(examples: Any) -> str:
    return f"{len(examples)} held-out examples" if hasattr(examples, "__len__") else "the held-out examples"

"""What the stage measures on the held-out examples: of what was just trained, or of the model as it was loaded.

With `training.predict_with_generate=true` also what the predict step measures, as transformers' Seq2SeqTrainer does.
"""

from __future__ import annotations

from typing import Any

from llmmod.models.generation import Reader, set_ends
from llmmod.protocols import LoadedModel, StepReport
from llmmod.schema.step.evaluate import EvaluateConf
from llmmod.schema.step.predict import PredictConf
from llmmod.stages.arguments import training_arguments
from llmmod.stages.build import lent, release, trainer_from
from llmmod.stages.loop.measures import after_last_step, only_measures
from llmmod.stages.rewards import BEGAN_WITH
from llmmod.steps.predict import Predict, held_out
from llmmod.steps.told import told_of_evaluation


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
        examples = held_out(session, self.name)
        metrics = self._metrics(session, examples)
        report = StepReport(metrics, summary=[f"{self.name}: {told_of_evaluation(metrics)} on {_counted(examples)}"])
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
        if current and (known := after_last_step(trained_by)):
            return known
        conf = session.conf(self.name, "training")
        args = training_arguments(conf, output_dir=session.step_dir(self.name), seed=session.root.seed, smoke=session.root.smoke)
        args.max_steps = 1  # of a training that doesn't take place; a streamed dataset asks for it
        reader = None
        if conf.data_kind == "prompt":
            reader = Reader.of(session.render(self.name), session.tokenizer(self.name))
            set_ends(model, stop_ids=session.render(self.name).stop_ids, pad_id=session.tokenizer(self.name).pad_token_id)
            self._tell_beginning(loaded, session)
        with lent(model):
            trainer = trainer_from(
                conf, model=model, args=args, train=examples, evaluation=examples, tokenizer=session.tokenizer(self.name), reader=reader
            )
            metrics = only_measures(trainer.evaluate())
            release(trainer)
        return metrics

    def _tell_beginning(self, loaded: LoadedModel, session: Any) -> None:
        """Have the model say what is under its adapter, by which a reward adapter is known to fit there; whole weights are that no more."""
        model = loaded.model
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        known = None if loaded.kind == "full" else session.stands_on(self.name).seen_from(session.step_dir(self.name))
        setattr(base, BEGAN_WITH, known)


def _predict_conf(session: Any) -> PredictConf:
    found = session.root.steps.get("predict")
    return found if isinstance(found, PredictConf) else PredictConf()


def _counted(examples: Any) -> str:
    return f"{len(examples)} held-out examples" if hasattr(examples, "__len__") else "the held-out examples"

"""What a model makes of the held-out examples; what that is, its stage says: answers to prompts, scores of pairs, …."""

from __future__ import annotations

from typing import Any

from llmmod.errors import ConfigError, Problem
from llmmod.instantiate import locate
from llmmod.protocols import Step, StepReport
from llmmod.schema.step.predict import PredictConf


class Predict:
    """The step `predict`.

    Args:
        conf: `steps.<name>`.
        name: the step's name, and that of the directory in the run's.
    """

    def __init__(self, conf: PredictConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Do what `training.predict` names.

        Raises:
            ConfigError: there are no held-out examples.
        """
        node = dict(session.conf(self.name, "training").predict)
        step: Step = locate(node.pop("_target_"))(self.conf, self.name, **node)
        return step.run(session)


def held_out(session: Any, step: str, *, of: str = "eval") -> Any:
    """A step's held-out examples, or `of="eval_conversations"`, what they were before they became tokens.

    Raises:
        ConfigError: there are none.
    """
    found = getattr(session.splits(step), of)
    if found is None or (hasattr(found, "__len__") and not len(found)):  # streamed ones have no length
        do = "Set dataset.val_size (0.1: a tenth of them), dataset.val_split or dataset.val_files"
        raise ConfigError(Problem("dataset.val_size", "no examples are held out, so there is nothing to measure", do=do))
    return found

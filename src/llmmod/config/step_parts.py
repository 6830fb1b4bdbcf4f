"""Which `model`, `finetune`, `training`, `dataset` and `render` a step uses: its own, those of the step it follows, or the root's.

One answer for the checks, which see a composed configuration as plain containers (`validate.context.Context`), and for the run, which has
it as objects (`StepConfigs`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from llmmod.config.schema.steps import Root, TrainConf
from llmmod.config.wording import PARTS


class StepParts(ABC):
    """A configuration's parts, step by step; a class that has it says how a value is got, and which steps there are."""

    @property
    @abstractmethod
    def steps(self) -> Sequence[str]:
        """The names in the pipeline that are steps, in order."""

    @abstractmethod
    def get(self, key: str) -> Any:
        """The value at a key, None where there is none."""

    @abstractmethod
    def trains(self, step: str) -> bool:
        """Whether a step trains."""

    def part(self, step: str, part: str) -> str:
        """The key of the `model`, `dataset`, … that a step goes by: its own, that of the step whose model it takes, or the root's.

        With `model.from_step` the part `model` is that of the step it names.
        """
        if part == "model" and self.get(f"steps.{step}.model.from_step") is not None:
            earlier = self.from_step(step)
            return part if earlier is None else self.part(earlier, part)
        own = f"steps.{step}.{part}"
        if self.get(own) is not None and part in PARTS:
            return own
        followed = None if self.trains(step) else self.followed(step)
        return part if followed is None or part not in PARTS else self.part(followed, part)

    def from_step(self, step: str) -> str | None:
        """The earlier training step that `model.from_step` names, where there is such a one."""
        named = self.get(f"steps.{step}.model.from_step")
        return named if named in self.training_steps_before(step) else None

    def followed(self, step: str) -> str | None:
        """The training step whose model a step that doesn't train takes; None where it takes the model of its configuration.

        It is `model.from_step`, else the last training step before it that left a language model, or the last where none did.
        """
        if self.get(f"steps.{step}.model") is not None:
            return self.from_step(step)
        trained = self.training_steps_before(step)
        writing = [name for name in trained if self.head(name) == "language"]
        return next(reversed(writing or trained), None)

    def head(self, step: str) -> str:
        """What is on top of the model that a step trains or takes: `language` or `reward`."""
        return str(self.get(f"{self.part(step, 'training')}.head") or "language")

    def training_steps_before(self, step: str) -> list[str]:
        """The training steps before a step, in order; none where it isn't in the pipeline."""
        before = self.steps[: self.steps.index(step)] if step in self.steps else []
        return [name for name in before if self.trains(name)]


class StepConfigs(StepParts):
    """Those of a validated configuration.

    Args:
        root: the configuration.
    """

    def __init__(self, root: Root) -> None:
        self._root = root

    @property
    def steps(self) -> Sequence[str]:
        """The pipeline."""
        return self._root.pipeline

    def get(self, key: str) -> Any:
        """The value at a key, None where there is none."""
        found: Any = self._root
        for name in key.split("."):
            found = found.get(name) if isinstance(found, dict) else getattr(found, name, None)
        return found

    def trains(self, step: str) -> bool:
        """Whether a step trains."""
        return isinstance(self._root.steps[step], TrainConf)

    def of(self, step: str, part: str) -> Any:
        """The part that a step goes by."""
        return self.get(self.part(step, part))

"""Which `model`, `finetune`, `training`, `dataset` and `render` a step goes by: its own, those of the step it follows, or the root's."""

from __future__ import annotations

from typing import Any

from llmmod.schema.root import Root
from llmmod.schema.step import TrainConf


class Parts:
    """The parts of a run's configuration, step by step. `schema.validate.context` says the same of a configuration that isn't typed yet.

    Args:
        root: the validated configuration.
    """

    def __init__(self, root: Root) -> None:
        self._root = root

    def of(self, step: str, part: str) -> Any:
        """A step's own part; where it has none, that of the training step whose model it takes, else the root's.

        With `model.from_step` the part `model` is that of the step it names.
        """
        own = getattr(self._root.steps[step], part, None)
        if part == "model" and own is not None and own.from_step is not None:
            return self.of(own.from_step, part)
        if own is not None:
            return own
        followed = None if self.trains(step) else self.followed(step)
        return getattr(self._root, part) if followed is None else self.of(followed, part)

    def from_step(self, step: str) -> str | None:
        """`steps.<step>.model.from_step`."""
        own = self._root.steps[step].model
        found: str | None = None if own is None else own.from_step
        return found

    def followed(self, step: str) -> str | None:
        """The training step whose model a step that doesn't train takes; None where it takes the model of its configuration.

        It is `model.from_step`, else the last training step before it that left a language model, or the last where none did.
        """
        if self._root.steps[step].model is not None:
            return self.from_step(step)
        pipeline = self._root.pipeline
        before = pipeline[: pipeline.index(step)] if step in pipeline else []
        trained = [name for name in before if self.trains(name)]
        writing = [name for name in trained if self.of(name, "training").head == "language"]
        return next(reversed(writing or trained), None)

    def trains(self, step: str) -> bool:
        """Whether a step trains."""
        return isinstance(self._root.steps[step], TrainConf)

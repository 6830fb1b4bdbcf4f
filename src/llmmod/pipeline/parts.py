"""The parts of a run's configuration, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmmod.schema.root import Root
from llmmod.schema.step.train import TrainConf
from llmmod.schema.step_parts import StepParts


class Parts(StepParts):
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

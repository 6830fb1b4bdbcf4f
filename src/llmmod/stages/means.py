"""Means over whatever came in batches of different sizes, each part weighted by its own size: two numbers a mean are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Means:
    """Weighted means by name."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, values: Mapping[str, float], weight: float = 1.0, *, weights: Mapping[str, float] | None = None) -> None:
        """Take the means of one batch.

        Args:
            values: name -> mean over the batch.
            weight: how much of what the means are over is in the batch.
            weights: the same by name, where that of a name is another.
        """
        for name, value in values.items():
            own = weight if weights is None else weights.get(name, weight)
            total, so_far = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = total + own * value, so_far + own

    def take(self) -> dict[str, float]:
        """The means of all that came since the last time; a name whose weights are all 0 has none."""
        found = {name: total / weight for name, (total, weight) in self._sums.items() if weight}
        self._sums = {}
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return dict(self._sums)

    def load(self, *states: Mapping[str, Any]) -> None:
        """Go on from where one or several others were: from a checkpoint, or from what all processes have."""
        self._sums = {}
        for name, (total, weight) in (item for state in states for item in state.items()):
            before, so_far = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = before + total, so_far + weight

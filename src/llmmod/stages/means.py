"""Means over whatever came in batches of different sizes, each part weighted by its own size: two numbers a mean are kept."""

from __future__ import annotations

from collections.abc import Mapping


class Means:
    """Weighted means by name."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, values: Mapping[str, float], weights: Mapping[str, float], default: float) -> None:
        """Take the means of one batch.

        Args:
            values: name -> mean over the batch.
            weights: name -> how much of what the mean is over is in the batch.
            default: the weight of names that aren't in `weights`.
        """
        for name, value in values.items():
            weight = weights.get(name, default)
            total, so_far = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = total + weight * value, so_far + weight

    def take(self) -> dict[str, float]:
        """The means of all that came since the last time; a name whose weights are all 0 has none."""
        found = {name: total / weight for name, (total, weight) in self._sums.items() if weight}
        self._sums = {}
        return found

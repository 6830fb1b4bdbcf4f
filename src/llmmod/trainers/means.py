"""Exact means over batches of different sizes, and the weights of examples. Only sums are kept, so memory does not grow with the examples.

Several examples may come from one row, such as the pairs of ranked answers; every row still counts the same. An example's weight is 1
divided by the number of its row's examples (`data.examples.answers`). In training, weights are scaled to a mean of 1 over the dataset, so
that a step's loss keeps its usual size and each row counts the same over an epoch. For a stream that mean is unknown, so the mean of the
optimizer step is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from datasets import Dataset

from llmmod.data.examples.answers import WEIGHT

_ROWS = 10_000  # rows that are read at a time


class Means:
    """Weighted means by name."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, values: Mapping[str, float], weight: float = 1.0, *, weights: Mapping[str, float] | None = None) -> None:
        """Add the means of one batch.

        Args:
            values: name -> mean over the batch.
            weight: of the batch, e.g. its number of examples.
            weights: name -> weight, for means over other items than the examples.
        """
        for name, value in values.items():
            own = weight if weights is None else weights.get(name, weight)
            total, so_far = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = total + own * value, so_far + own

    def take(self) -> dict[str, float]:
        """The means of all batches since the last call; a name whose weights are all 0 is left out."""
        found = {name: total / weight for name, (total, weight) in self._sums.items() if weight}
        self._sums = {}
        return found

    def state(self) -> dict[str, Any]:
        """The sums, for a checkpoint."""
        return dict(self._sums)

    def load(self, *states: Mapping[str, Any]) -> None:
        """Set the sums to those of a checkpoint, or to the total over several processes."""
        self._sums = {}
        for name, (total, weight) in (item for state in states for item in state.items()):
            before, so_far = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = before + total, so_far + weight


@dataclass
class RunningMoments:
    """Mean and variance of all scores so far, updated by batch (Chan et al. 1979: exact, whatever the batches are)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    def update(self, scores: torch.Tensor) -> None:
        """Add a batch of scores of all processes."""
        values = scores.double().flatten()
        count = values.numel()
        if not count:
            return
        mean, delta, total = values.mean().item(), values.mean().item() - self.mean, self.count + count
        self.squares += (values - mean).square().sum().item() + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        """The standard deviation (the variance is divided by the count - 1); 0 for fewer than two scores."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """The standard error of the mean; 0 for fewer than two scores."""
        return self.std / math.sqrt(self.count) if self.count else 0.0


class RowWeights:
    """The weights of the training examples.

    Args:
        dataset: the training examples; without the column `weight`, all count the same.
    """

    def __init__(self, dataset: Any) -> None:
        self._mean: float | None = _mean_weight(dataset)
        self._of_step = 1.0

    def see_step(self, batches: Sequence[Mapping[str, Any]], accelerator: Any) -> None:
        """Compute the mean weight of an optimizer step over all processes, if the dataset's mean is unknown."""
        if self._mean is None and batches and WEIGHT in batches[0]:
            found = torch.cat([batch[WEIGHT].float() for batch in batches])
            sums = accelerator.reduce(torch.stack([found.sum(), found.new_tensor(len(found))]).to(accelerator.device), "sum")
            self._of_step = float(sums[0] / sums[1])

    def of(self, inputs: Mapping[str, Any], *, training: bool) -> torch.Tensor | None:
        """The weights of a batch's examples, float32 [examples]; None if all count the same.

        Args:
            inputs: the batch.
            training: whether to scale them to a mean of 1; an evaluation divides by their sum instead.
        """
        if WEIGHT not in inputs:
            return None
        found: torch.Tensor = inputs[WEIGHT].float()
        return found / (self._of_step if self._mean is None else self._mean) if training else found


def without_weights(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The batch without its weights, as models take it."""
    return {name: value for name, value in inputs.items() if name != WEIGHT}


def _mean_weight(dataset: Any) -> float | None:
    """The mean weight of a dataset; None for a stream."""
    if not isinstance(dataset, Dataset):
        return None
    if WEIGHT not in dataset.column_names:
        return 1.0
    tables = dataset.select_columns([WEIGHT]).with_format("arrow").iter(batch_size=_ROWS)
    return sum(pc.sum(pc.cast(table[WEIGHT], "float64")).as_py() for table in tables) / len(dataset)

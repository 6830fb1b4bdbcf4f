"""How much examples count that are several of one row, as the pairs of ranked answers are: each row as much as any other.

An example's weight is 1 by the examples of its row (`data.forms.ranked`). In training they are scaled so that their mean over the dataset
is 1: a step's loss is then of the size that it has without weights, and over an epoch each row counts the same, whichever steps its
examples are in and however few a step has. Of a stream nobody knows that mean, so that it is the step's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from datasets import Dataset

from llmmod.data.forms.ranked import WEIGHT

_ROWS = 10_000


class Weights:
    """The weights of a training's examples.

    Args:
        dataset: the training examples; without the column, all count the same.
    """

    def __init__(self, dataset: Any) -> None:
        self._mean: float | None = _mean(dataset)
        self._of_step = 1.0

    def see_step(self, batches: Sequence[Mapping[str, Any]], accelerator: Any) -> None:
        """Take note of the batches of an optimizer step, of all processes."""
        if self._mean is None and batches and WEIGHT in batches[0]:
            found = torch.cat([batch[WEIGHT].float() for batch in batches])
            sums = accelerator.reduce(torch.stack([found.sum(), found.new_tensor(len(found))]).to(accelerator.device), "sum")
            self._of_step = float(sums[0] / sums[1])

    def of(self, inputs: Mapping[str, Any], *, training: bool) -> torch.Tensor | None:
        """The weights of a batch's examples, float32 [examples]; None where all count the same.

        Args:
            inputs: the batch.
            training: whether they are scaled; sums over an evaluation are divided by the sum of the weights.
        """
        if WEIGHT not in inputs:
            return None
        found: torch.Tensor = inputs[WEIGHT].float()
        return found / (self._of_step if self._mean is None else self._mean) if training else found


def without_weights(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as models read it."""
    return {name: value for name, value in inputs.items() if name != WEIGHT}


def _mean(dataset: Any) -> float | None:
    """The mean weight of a dataset whose examples are known, None of a stream."""
    if not isinstance(dataset, Dataset):
        return None
    if WEIGHT not in dataset.column_names:
        return 1.0
    tables = dataset.select_columns([WEIGHT]).with_format("arrow").iter(batch_size=_ROWS)
    return sum(pc.sum(pc.cast(table[WEIGHT], "float64")).as_py() for table in tables) / len(dataset)

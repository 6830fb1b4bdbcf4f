"""A dataset with columns of numbers beside it, which the dataset itself knows nothing of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import Dataset as _Dataset

from llmmod.data.lengths import lengths

_ROWS = 1000


class WithColumns(_Dataset):  # type: ignore[misc, type-arg]
    """The examples of a dataset, each with a number of each column; datasets' own `add_column` would copy a dataset that was split.

    Args:
        dataset: of the library datasets.
        columns: name -> numbers, one an example.
    """

    def __init__(self, dataset: Dataset, columns: Mapping[str, NDArray[np.float32]]) -> None:
        self._dataset, self._columns = dataset, columns

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """Several at once, as a DataLoader asks for them."""
        examples = self._dataset.__getitems__(list(places))
        numbers = ({name: float(column[place]) for name, column in self._columns.items()} for place in places)
        return [example | more for example, more in zip(examples, numbers, strict=True)]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return lengths(self._dataset)


def digest(dataset: Dataset) -> str:
    """What the tokens of a dataset hash to, in their order."""
    found = hashlib.sha256()
    names = sorted(name for name in dataset.column_names if name.endswith("_ids"))
    for batch in dataset.select_columns(names).with_format("arrow").iter(batch_size=_ROWS):
        for name in names:
            found.update(pc.list_value_length(batch[name]).to_numpy().tobytes())
            found.update(pc.list_flatten(batch[name]).to_numpy().tobytes())
    return found.hexdigest()

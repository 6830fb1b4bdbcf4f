"""What a reference model thinks of each example, kept beside a run, so that going on from a checkpoint doesn't work it out again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.data import Dataset as TorchDataset

from llmmod.data.dataset.packing import lengths
from llmmod.files.paths import atomic_write

log = logging.getLogger("llmmod.train")
# Of a sum of log-probabilities; another model is off by far more, another device by far less.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-2
_ROWS = 1000  # hashed together


def file_name(split: str) -> str:
    """What the file of a split is called."""
    return f"reference_log_probs.{split}.safetensors"


def save_reference_logps(path: Path, columns: Mapping[str, NDArray[np.float32]], *, digest: str) -> None:
    """Write columns, each [examples], in one step, with what the examples hash to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        save_file(dict(columns), partial, metadata={"examples": digest})


def load_reference_logps(path: Path, *, digest: str, first: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]] | None:
    """The columns that were written, None where there are none, or they are of other examples or of another model.

    Args:
        path: the file.
        digest: what the examples hash to.
        first: of the first examples, what the model thinks now.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            same = (file.metadata() or {}).get("examples") == digest
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError):
        return None
    if same and all(name in found and _close(found[name][: len(values)], values) for name, values in first.items()):
        return found
    log.info("%s is of other examples or another model: worked out anew", path)
    return None


def _close(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE)


class DatasetWithColumns(TorchDataset):  # type: ignore[misc, type-arg]
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


def examples_digest(dataset: Dataset) -> str:
    """What the tokens of a dataset hash to, in their order."""
    found = hashlib.sha256()
    names = sorted(name for name in dataset.column_names if name.endswith("_ids"))
    for batch in dataset.select_columns(names).with_format("arrow").iter(batch_size=_ROWS):
        for name in names:
            found.update(pc.list_value_length(batch[name]).to_numpy().tobytes())
            found.update(pc.list_flatten(batch[name]).to_numpy().tobytes())
    return found.hexdigest()

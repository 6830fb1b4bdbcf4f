"""The reference: the model as it was before training, mostly without a second model in memory.

A new adapter adds nothing, so the reference is the same model with the adapter off. Otherwise the initial values of the trained weights
are kept, and swapped in while the reference runs; frozen weights are shared. Its log-probabilities of a whole dataset can be stored in
the run's directory, so that a resumed training does not compute them again.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from datasets import Dataset
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.data import Dataset as TorchDataset

from llmmod.data.dataset.packing import lengths
from llmmod.files.paths import atomic_write
from llmmod.models.adapters.base_changing_init import as_base, has_lost_base

log = logging.getLogger("llmmod.train")
_ROWS = 1000  # rows that are hashed at a time
_ZERO_AT_START = ("lora_B", "lora_embedding_A")  # parameter names of peft 0.21
# Tolerance for an example's summed log-probability: another model differs by far more, another device by far less.
_RELATIVE_TOLERANCE, _ABSOLUTE_TOLERANCE = 1e-3, 1e-2


def adapter_is_noop(adapted: Any) -> bool:
    """Whether a model computes the same with its adapter on and off. A new adapter of almost every kind does so before training.

    Args:
        adapted: a PeftModel. False for an adapter that continues an earlier training or was initialised from the model's weights (PiSSA,
            OLoRA, LoftQ), and where biases are trained along, since switching the adapter off does not restore them.
    """
    zero_at_start = (tensor for name, tensor in adapted.named_parameters() if any(part in name for part in _ZERO_AT_START))
    return adapted.active_peft_config.bias == "none" and not any(tensor.any() for tensor in zero_at_start)


def can_disable_adapter(model: Any) -> bool:
    """Whether the model without its adapters can still be computed: not if it has none, and not with LoftQ, which changed the base."""
    return hasattr(model, "peft_config") and not has_lost_base(model)


def initial_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """Copies of the weights that will be trained; None if the adapter adds nothing yet, since switching it off gives the reference."""
    if hasattr(model, "peft_config") and adapter_is_noop(model):
        return None
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def reference(model: Any, initial: dict[str, torch.Tensor] | None) -> AbstractContextManager[None] | None:
    """A context in which the model is the reference; None where the reference is unknown.

    Args:
        model: the model that is trained.
        initial: from `initial_weights`, before the training.
    """
    if initial is not None:
        return _swapped_weights(model, initial)
    return as_base(model) if can_disable_adapter(model) else None


@contextmanager
def _swapped_weights(model: Any, initial: dict[str, torch.Tensor]) -> Iterator[None]:
    """Swaps tensors instead of copying them, unless the model was rounded to its checkpoint's dtype in the meantime."""
    swapped = [(parameter, initial[name]) for name, parameter in model.named_parameters() if name in initial]
    trained = [parameter.data for parameter, _ in swapped]
    for parameter, weights in swapped:
        parameter.data = weights.to(parameter.dtype)
    try:
        yield
    finally:
        for (parameter, _), weights in zip(swapped, trained, strict=True):
            parameter.data = weights


def frozen_copy(model: Any, *, share: bool = True) -> Any:
    """A frozen copy of a model, in evaluation mode.

    Args:
        model: a PreTrainedModel, before a trainer has replaced its `forward`.
        share: whether the copy shares the tensors that the model does not train.
    """
    frozen = [*(tensor for tensor in model.parameters() if not tensor.requires_grad), *model.buffers()]
    shared = {id(tensor): tensor for tensor in frozen} if share else {}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


class NoReferenceModel(torch.nn.Module):
    """Passed to trl (1.16) as the reference model, so that it does not create a model or an adapter; it is never called.

    Args:
        config: of the model that is trained; trl reads it.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


def reference_logps_file(split: str) -> str:
    """The name of the file that holds the reference's log-probabilities of a split."""
    return f"reference_log_probs.{split}.safetensors"


def save_reference_logps(path: Path, columns: Mapping[str, NDArray[np.float32]], *, digest: str) -> None:
    """Write columns, each [examples], together with the digest of the examples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        save_file(dict(columns), partial, metadata={"examples": digest})


def load_reference_logps(path: Path, *, digest: str, first: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]] | None:
    """The stored columns; None without a file, or if they belong to other examples or to another model.

    Args:
        path: the file.
        digest: of the examples.
        first: the columns of the first examples as the model computes them now.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            same_examples = (file.metadata() or {}).get("examples") == digest
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError):
        return None
    if same_examples and all(name in found and _close(found[name][: len(values)], values) for name, values in first.items()):
        return found
    log.info("%s belongs to other examples or to another model: computing it again", path)
    return None


def _close(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=_RELATIVE_TOLERANCE, atol=_ABSOLUTE_TOLERANCE)


def examples_digest(dataset: Dataset) -> str:
    """The SHA-256 of all token ids of a dataset, in order."""
    found = hashlib.sha256()
    names = sorted(name for name in dataset.column_names if name.endswith("_ids"))
    for batch in dataset.select_columns(names).with_format("arrow").iter(batch_size=_ROWS):
        for name in names:
            found.update(pc.list_value_length(batch[name]).to_numpy().tobytes())
            found.update(pc.list_flatten(batch[name]).to_numpy().tobytes())
    return found.hexdigest()


class DatasetWithColumns(TorchDataset):  # type: ignore[misc, type-arg]
    """The examples of a dataset with further columns of numbers; `Dataset.add_column` would copy a dataset that was split.

    Args:
        dataset: a datasets.Dataset.
        columns: name -> numbers, one for each example.
    """

    def __init__(self, dataset: Dataset, columns: Mapping[str, NDArray[np.float32]]) -> None:
        self._dataset, self._columns = dataset, columns

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """Several examples at once; a DataLoader calls it."""
        examples = self._dataset.__getitems__(list(places))
        numbers = ({name: float(column[place]) for name, column in self._columns.items()} for place in places)
        return [example | more for example, more in zip(examples, numbers, strict=True)]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return lengths(self._dataset)

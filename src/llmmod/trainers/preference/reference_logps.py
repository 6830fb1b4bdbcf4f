"""What a reference model thinks of each example, kept beside a run, so that going on from a checkpoint doesn't work it out again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llmmod.files.paths import atomic_write

log = logging.getLogger("llmmod.train")
# Of a sum of log-probabilities; another model is off by far more, another device by far less.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-2


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

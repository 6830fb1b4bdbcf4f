"""Checkpoints of a training run: which there are, and which one `training.resume_from_checkpoint` means."""

from __future__ import annotations

import json
import re
from pathlib import Path

from llmmod.errors import ConfigError, Problem

_KEY = "training.resume_from_checkpoint"
_NAME = re.compile(r"checkpoint-(\d+)")
_STATE, _OPTIMIZER = "trainer_state.json", ("optimizer.pt", "optimizer.bin")


def checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in a directory, oldest first; one that was cut off while it was written is none."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.fullmatch(path.name)) and _is_complete(path)]
    return [path for _, path in sorted(found)]


def find_checkpoint(wanted: str | bool | None, *, train_dir: Path) -> Path | None:
    """The checkpoint to go on from, None where training starts anew.

    Args:
        wanted: a checkpoint, or a directory that holds some (a run's `train/`, or the run's own), whose newest is taken; true for the
            newest of this run; None or false for none.
        train_dir: where this run's train step writes.

    Raises:
        ConfigError: if it points nowhere, or to what training can't go on from.
    """
    if wanted is None or str(wanted).lower() in ("", "false", "null", "none"):
        return None
    if str(wanted).lower() == "true":
        do = "Set output_dir to the run to go on with, or name a checkpoint"
        return _newest([train_dir], found=f"there is no checkpoint in {train_dir}", do=do)
    path = Path(str(wanted)).expanduser()
    if not path.is_dir():
        raise ConfigError(Problem(_KEY, f"there is no directory {path}", do=_siblings(path)))
    if _NAME.fullmatch(path.name) or any((path / name).is_file() for name in _OPTIMIZER):
        return _usable(path)
    return _newest([path, path / "train"], found=f"{path} is no checkpoint and holds none", do="Name a directory checkpoint-N")


def _newest(directories: list[Path], *, found: str, do: str) -> Path:
    for directory in directories:
        if kept := checkpoints(directory):
            return _usable(kept[-1])
    raise ConfigError(Problem(_KEY, found, do=do))


def _usable(path: Path) -> Path:
    if not _is_complete(path):
        raise ConfigError(Problem(_KEY, f"{path} is incomplete: it has no readable {_STATE}", do="Take an earlier checkpoint"))
    sharded = any(path.glob("global_step*")) or any(path.glob("optimizer_*"))  # DeepSpeed's and FSDP's own layouts
    if not sharded and not any((path / name).is_file() for name in _OPTIMIZER):
        do = "Set training.save_only_model=false in runs to go on from, or start anew with finetune.adapters or the model's path"
        raise ConfigError(Problem(_KEY, f"{path} holds no optimizer state", do=do))
    return path


def _is_complete(path: Path) -> bool:
    # The trainer writes this file last.
    try:
        json.loads((path / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _siblings(path: Path) -> str:
    """What there is instead, nearest first."""
    kept = checkpoints(path.parent) or checkpoints(path / "train")
    if not kept:
        return "Give the path of a checkpoint, or true for this run's newest"
    return f"There are {', '.join(str(p) for p in reversed(kept))}"

"""The checkpoints of a training, and which one `training.resume_from_checkpoint` means.

A checkpoint is complete if its files are: a killed process leaves out the last files, a power failure leaves files that are cut off or
empty. Only the table of contents of each file is read, so a changed bit is not found.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from llmmod.errors import ConfigError, Problem

_KEY = "training.resume_from_checkpoint"
_NAME = re.compile(r"checkpoint-(\d+)")
_STATE, _OPTIMIZER = "trainer_state.json", ("optimizer.pt", "optimizer.bin")
_TORCH = (".bin", ".pt", ".pth")  # files of torch.save
_WEIGHTS = re.compile(r"(adapter_|pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)")


def checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in a directory, oldest first."""
    return [path for path in _numbered(directory) if not damage(path)]


def passed_over(checkpoint: Path) -> dict[Path, str]:
    """The damaged checkpoints that are later than this one, and what is wrong with each."""
    all_of_run = _numbered(checkpoint.parent)
    later = all_of_run[all_of_run.index(checkpoint) + 1 :] if checkpoint in all_of_run else []
    return {path: wrong for path in later if (wrong := damage(path))}


def damage(path: Path) -> str:
    """What is wrong with the files of a checkpoint; empty if nothing is."""
    if not _is_complete(path / _STATE):  # the trainer writes this file last
        return f"it has no readable {_STATE}"
    files = sorted(file for file in path.rglob("*") if file.is_file())
    cut = next((file for file in files if not _is_complete(file)), None)
    if cut is not None:
        return f"{cut.relative_to(path)} is cut off or can't be read"
    shards = [file.parent / name for file in files if file.name.endswith(".index.json") for name in _indexed(file)]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if not absent and not _is_sharded(path) and not any(_WEIGHTS.fullmatch(file.name) for file in files):
        absent = ["the file of its weights"]
    return f"{absent[0]} is missing" if absent else ""


def _is_sharded(path: Path) -> bool:
    """Whether a checkpoint has the layout of DeepSpeed or FSDP."""
    return any(path.glob("global_step*")) or any(path.glob("optimizer_*"))


def _numbered(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _is_complete(file: Path) -> bool:
    """Whether a file of weights, state or JSON is not cut off; True for all other files."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            return _has_stated_size(file)
        elif file.suffix in _TORCH:
            with file.open("rb") as opened:
                if opened.read(1) == b"\x80":  # a pickle, as torch wrote until 1.6
                    return True
            with zipfile.ZipFile(file):  # reads the directory at the end of the file
                return True
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return True


def _has_stated_size(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says (8 bytes for the length of the header, the header, the tensors)."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        size = file.stat().st_size
        if not 0 < length <= size - 8:
            return False
        header = json.loads(opened.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return bool(size == 8 + length + max(ends, default=0))


def _indexed(index: Path) -> set[str]:
    """The names of the files of sharded weights."""
    return set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())


def find_checkpoint(wanted: str | bool | None, *, train_dir: Path) -> Path | None:
    """The checkpoint to resume from; None to start from the beginning.

    Args:
        wanted: a checkpoint; a directory with checkpoints (a run's directory or its `train/`), of which the newest is taken; true for the
            newest of this run; None or false for none.
        train_dir: the directory of this run's train step.

    Raises:
        ConfigError: there is no such checkpoint, or training can't resume from it.
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
        there = _numbered(directory)[::-1]
        if there:
            return _usable(next((path for path in there if not damage(path)), there[0]))
    raise ConfigError(Problem(_KEY, found, do=do))


def _usable(path: Path) -> Path:
    if wrong := damage(path):
        raise ConfigError(Problem(_KEY, f"{path} is incomplete: {wrong}", do=_complete_ones(path)))
    if not _is_sharded(path) and not any((path / name).is_file() for name in _OPTIMIZER):
        do = "Set training.save_only_model=false in runs to go on from, or start anew with finetune.adapters or the model's path"
        raise ConfigError(Problem(_KEY, f"{path} holds no optimizer state", do=do))
    return path


def _complete_ones(path: Path) -> str:
    kept = checkpoints(path.parent)
    return f"Take another: {', '.join(str(p) for p in reversed(kept))}" if kept else "Take another checkpoint, or start anew"


def _siblings(path: Path) -> str:
    """The checkpoints that exist instead, newest first."""
    kept = checkpoints(path.parent) or checkpoints(path / "train")
    if not kept:
        return "Give the path of a checkpoint, or true for this run's newest"
    return f"There are {', '.join(str(p) for p in reversed(kept))}"

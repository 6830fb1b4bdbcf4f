"""The checkpoints of a training: how one is put into place, and which one `training.resume_from_checkpoint` means.

A checkpoint is written in `.saving/` and moved into place when it is whole, so a killed process leaves it there or not at all. A manifest
in it has the size of each file: a power failure leaves files that are cut off or empty. Beside sizes, only the table of contents of each
file is read, so a changed bit is not found.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

from llmmod.errors import ConfigError, Problem

ASIDE = ".saving"  # in the directory of the checkpoints
MANIFEST = "manifest.json"

_KEY = "training.resume_from_checkpoint"
_NAME = re.compile(r"checkpoint-(\d+)")
_STATE, _OPTIMIZER = "trainer_state.json", ("optimizer.pt", "optimizer.bin")
_TORCH = (".bin", ".pt", ".pth")  # files of torch.save
_WEIGHTS = re.compile(r"(adapter_|pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)")


def checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in a directory, oldest first."""
    return [path for path in _numbered(directory) if not damage(path)]


def passed_over(directory: Path, checkpoint: Path | None) -> dict[Path, str]:
    """The damaged checkpoints in a directory that are later than this one, and what is wrong with each; None: all damaged ones."""
    all_of_run = _numbered(directory)
    if checkpoint is not None:
        all_of_run = all_of_run[all_of_run.index(checkpoint) + 1 :] if checkpoint in all_of_run else []
    return {path: wrong for path in all_of_run if (wrong := damage(path))}


def damage(path: Path) -> str:
    """What is wrong with the files of a checkpoint; empty if nothing is."""
    if not _is_complete(path / _STATE):  # the trainer writes this file last
        return f"it has no readable {_STATE}"
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if (path / MANIFEST).is_file():  # transformers alone writes none
        try:
            sizes = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except ValueError:
            return f"{MANIFEST} is cut off or can't be read"
        there = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
        if (absent := next((name for name in sizes if name not in there), None)) is not None:
            return f"{absent} is missing"
        if (other := next((name for name, size in sizes.items() if size != there[name]), None)) is not None:
            return f"{other} is cut off or can't be read"
    cut = next((file for file in files if not _is_complete(file)), None)
    if cut is not None:
        return f"{cut.relative_to(path)} is cut off or can't be read"
    shards = [file.parent / name for file in files if file.name.endswith(".index.json") for name in _indexed(file)]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if not absent and not _is_sharded(path) and not any(_WEIGHTS.fullmatch(file.name) for file in files):
        absent = ["the file of its weights"]
    return f"{absent[0]} is missing" if absent else ""


def put_in_place(made: Path, place: Path) -> None:
    """Move a checkpoint that is written to its place, all of it on the disk first; one that was there is replaced."""
    sizes = {file.relative_to(made).as_posix(): file.stat().st_size for file in sorted(made.rglob("*")) if file.is_file()}
    (made / MANIFEST).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
    for written in (*made.rglob("*"), made):
        _flush(written)
    _move(made, place)
    _flush(place.parent)


def settle(directory: Path) -> None:
    """Finish what a killed process had begun: a whole checkpoint goes to its place, the rest of what was being written goes away.

    Only the process that trains in the directory may do it.
    """
    aside = directory / ASIDE
    for made in _numbered(aside):
        if (made / MANIFEST).is_file() and not damage(made):
            _move(made, directory / made.name)
    shutil.rmtree(aside, ignore_errors=True)


def rotate(directory: Path, limit: int | None, *, newest: Path, best: Path | None) -> None:
    """Remove the oldest checkpoints beyond `training.save_total_limit`, damaged ones first; never the newest one nor the best.

    Each is moved aside first: a process that is killed meanwhile leaves a whole checkpoint or none.
    """
    if not limit or limit < 0:
        return
    kept = {newest} | ({best} if best is not None else set())
    there = _numbered(directory)
    others = [path for path in there if path not in kept]
    others.sort(key=lambda path: (not damage(path), path.stat().st_mtime))
    for path in others[: max(0, len(there) - max(limit, len(kept)))]:
        gone = directory / ASIDE / f"gone-{path.name}"
        gone.parent.mkdir(exist_ok=True)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(OSError):  # what is being written lies there
            gone.parent.rmdir()


def _move(made: Path, place: Path) -> None:
    if place.exists():  # what it held is that of an earlier attempt, and made holds the same step
        place.rename(made.with_name(f"gone-{place.name}"))
    made.rename(place)


def _flush(path: Path) -> None:
    """Have what is written there on the disk before anything that follows."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


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
        wanted: a checkpoint; a directory with checkpoints (a run's directory or its `train/`), of which the newest whole one is taken;
            true for the newest whole one of this run, if it has one; None or false for none.
        train_dir: the directory of this run's train step.

    Raises:
        ConfigError: there is no such checkpoint, or training can't resume from it.
    """
    if wanted is None or str(wanted).lower() in ("", "false", "null", "none"):
        return None
    if str(wanted).lower() == "true":
        kept = checkpoints(train_dir)
        return _usable(kept[-1]) if kept else None
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

"""The checkpoints of a training: writing them atomically, and finding the one that `training.resume_from_checkpoint` means.

A checkpoint is written in `.saving/` and moved into place when it is complete, so a killed process never leaves a partial one. Its manifest
has the size and the checksum of each file: a power failure can truncate files, a disk or a copy can change bits. Checksums are compared
before a training resumes and before the best model is loaded; other checks only compare sizes and each file's table of contents.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from llmmod.errors import ConfigError, Problem

ASIDE = ".saving"  # next to the checkpoints
MANIFEST = "manifest.json"

_KEY = "training.resume_from_checkpoint"
_NAME = re.compile(r"checkpoint-(\d+)")
_STATE, _OPTIMIZER = "trainer_state.json", ("optimizer.pt", "optimizer.bin")
_TORCH = (".bin", ".pt", ".pth")  # files of torch.save
_SIZE, _CHECKSUM = "bytes", "crc32"
_READ_AT_ONCE = 2**20  # bytes
_WEIGHTS = re.compile(r"(adapter_|pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)")


def checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in a directory, oldest first."""
    return [path for path in _numbered(directory) if not damage(path)]


def passed_over(directory: Path, checkpoint: Path | None) -> dict[Path, str]:
    """The damaged checkpoints that are later than this one, each with its fault; None: all damaged ones.

    Their bytes are compared too.
    """
    all_of_run = _numbered(directory)
    if checkpoint is not None:
        all_of_run = all_of_run[all_of_run.index(checkpoint) + 1 :] if checkpoint in all_of_run else []
    return {path: wrong for path in all_of_run if (wrong := damage(path, content=True))}


def damage(path: Path, *, content: bool = False) -> str:
    """The fault of a checkpoint's files; empty if they are complete.

    Args:
        path: its directory.
        content: whether to compare every byte with the checksums, several files at once: 0.1 s for 500 MB that are in memory. A checkpoint
            of plain transformers doesn't have checksums.
    """
    if not _is_complete(path / _STATE):  # the trainer writes this file last
        return f"{_STATE} is missing or can't be read"
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if (path / MANIFEST).is_file():  # checkpoints of plain transformers lack it
        try:
            manifest = _read_manifest(path)
        except (ValueError, AttributeError, TypeError, KeyError):
            return f"{MANIFEST} is cut off or can't be read"
        sizes = {name: size for name, (size, _) in manifest.items()}
        there = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
        if (gone := next((name for name in sizes if name not in there), None)) is not None:
            return f"{gone} is missing"
        if (other := next((name for name, size in sizes.items() if size != there[name]), None)) is not None:
            return f"{other} is cut off or can't be read"
        checksums = {name: checksum for name, (_, checksum) in manifest.items() if content and checksum is not None}
        now = _checksums([path / name for name in checksums])
        if (changed := next((name for name, checksum in checksums.items() if now[path / name] != checksum), None)) is not None:
            return f"{changed} has changed since it was saved"
    cut = next((file for file in files if not _is_complete(file)), None)
    if cut is not None:
        return f"{cut.relative_to(path)} is cut off or can't be read"
    shards = [file.parent / name for file in files if file.name.endswith(".index.json") for name in _indexed(file)]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if not absent and not _is_sharded(path) and not any(_WEIGHTS.fullmatch(file.name) for file in files):
        absent = ["the file of its weights"]
    return f"{absent[0]} is missing" if absent else ""


def put_in_place(made: Path, place: Path, *, checksums: Mapping[str, str] | None = None) -> None:
    """Flush a written checkpoint to the disk and move it to its place, replacing an older one of the same step.

    Args:
        made: its directory.
        place: its final directory.
        checksums: of its files, if several processes have read them; see `checksums_of_share`.
    """
    files = _files(made)
    known = {made / name: checksum for name, checksum in (checksums or {}).items()}
    known |= _checksums([file for file in files if file not in known])
    manifest = {file.relative_to(made).as_posix(): {_SIZE: file.stat().st_size, _CHECKSUM: known[file]} for file in files}
    (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for written in (*made.rglob("*"), made):
        _flush(written)
    _move(made, place)
    _flush(place.parent)


def checksums_of_share(made: Path, *, process: int, processes: int) -> dict[str, str]:
    """Name -> checksum for one process's share of the files of a checkpoint: a sharded one is too large to be read by a single process."""
    files = _files(made)[process::processes]
    return {file.relative_to(made).as_posix(): checksum for file, checksum in _checksums(files).items()}


def _files(made: Path) -> list[Path]:
    return [file for file in sorted(made.rglob("*")) if file.is_file() and file.name != MANIFEST]


def settle(directory: Path) -> None:
    """Finish the work of a killed process: move a complete checkpoint to its place, and delete a partial one.

    Only the process that trains in the directory may call it.
    """
    aside = directory / ASIDE
    for made in _numbered(aside):
        if (made / MANIFEST).is_file() and not damage(made, content=True):
            _move(made, directory / made.name)
    shutil.rmtree(aside, ignore_errors=True)


def rotate(directory: Path, limit: int | None, *, newest: Path, best: Path | None) -> None:
    """Remove the oldest checkpoints beyond `training.save_total_limit`, damaged ones first, but never the newest or the best one.

    Each is moved to `.saving/` first, so that a process killed meanwhile does not leave a partial checkpoint.
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
        with suppress(OSError):  # a checkpoint may be in progress there
            gone.parent.rmdir()


def _move(made: Path, place: Path) -> None:
    if place.exists():  # from an earlier attempt at the same step
        place.rename(made.with_name(f"gone-{place.name}"))
    made.rename(place)


def _flush(path: Path) -> None:
    """Flush files to the disk before anything that follows."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def checksum_of(file: Path) -> str:
    """The CRC-32 of a file, 8 hex digits; read again only if the file is another one."""
    found = file.stat()
    return _checksum(file, found.st_ino, found.st_size, found.st_mtime_ns)


def _checksums(files: Sequence[Path]) -> dict[Path, str]:
    with ThreadPoolExecutor() as threads:  # zlib and reading release Python's lock
        return dict(zip(files, threads.map(checksum_of, files), strict=True))


@lru_cache
def _checksum(file: Path, *identity: int) -> str:
    found = 0
    with file.open("rb", buffering=0) as opened:
        while part := opened.read(_READ_AT_ONCE):
            found = zlib.crc32(part, found)
    return f"{found:08x}"


def _read_manifest(path: Path) -> dict[str, tuple[int, str | None]]:
    """Name -> size in bytes, and checksum or None, of the files of a checkpoint. The first manifests had sizes alone."""
    raw = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    full = {name: of_file if isinstance(of_file, dict) else {_SIZE: of_file} for name, of_file in raw.items()}
    return {name: (of_file[_SIZE], of_file.get(_CHECKSUM)) for name, of_file in full.items()}


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
    except Exception:  # whatever the readers of a damaged file raise: a changed bit may also change a key
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


def find_checkpoint(wanted: str | bool | None, *, train_dir: Path, content: bool = True) -> Path | None:
    """The checkpoint to resume from; None to start from the beginning.

    Args:
        wanted: a checkpoint; a directory with checkpoints (a run's directory or its `train/`), of which the newest whole one is taken;
            true for the newest whole one of this run, if it has one; None or false to start from the beginning.
        train_dir: the directory of this run's train step.
        content: whether to compare every byte of a checkpoint with its checksum; see `damage`.

    Raises:
        ConfigError: the checkpoint is missing, or training can't resume from it.
    """
    if wanted is None or str(wanted).lower() in ("", "false", "null", "none"):
        return None
    if str(wanted).lower() == "true":
        newest = _newest_whole(train_dir, content=content)
        return None if newest is None else _usable(newest)
    path = Path(str(wanted)).expanduser()
    if not path.is_dir():
        raise ConfigError(Problem(_KEY, f"{path} is not a directory", do=_siblings(path)))
    if _NAME.fullmatch(path.name) or any((path / name).is_file() for name in _OPTIMIZER):
        return _usable(path, content=content)
    for directory in (path, path / "train"):
        if there := _numbered(directory):
            return _usable(_newest_whole(directory, content=content) or there[-1])
    raise ConfigError(Problem(_KEY, f"{path} is not a checkpoint and doesn't contain one", do="Give a directory checkpoint-N"))


def _newest_whole(directory: Path, *, content: bool) -> Path | None:
    return next((path for path in reversed(_numbered(directory)) if not damage(path, content=content)), None)


def _usable(path: Path, *, content: bool = False) -> Path:
    if wrong := damage(path, content=content):
        raise ConfigError(Problem(_KEY, f"{path} is damaged: {wrong}", do=_complete_ones(path)))
    if not _is_sharded(path) and not any((path / name).is_file() for name in _OPTIMIZER):
        do = "Set training.save_only_model=false in runs to resume, or start a new run with finetune.adapters or the model's path"
        raise ConfigError(Problem(_KEY, f"{path} doesn't have an optimizer state", do=do))
    return path


def _complete_ones(path: Path) -> str:
    kept = checkpoints(path.parent)
    return f"Choose another: {', '.join(str(p) for p in reversed(kept))}" if kept else "Choose another checkpoint, or start a new run"


def _siblings(path: Path) -> str:
    """The checkpoints that exist instead, newest first."""
    kept = checkpoints(path.parent) or checkpoints(path / "train")
    if not kept:
        return "Give the path of a checkpoint, or true for this run's newest"
    return f"Choose one of {', '.join(str(p) for p in reversed(kept))}"

"""How much a cache may take: what was used longest ago goes first, and nothing that a live process has in use.

A process holds a shared lock on `<key>.use` beside each directory that it uses, until it ends, however it ends; the time of that file is
that of the last use. A directory is taken away by who gets its lock alone. Where the file system has no locks nobody can know what is in
use, so nothing is taken away there.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

USE = ".use"
_held: dict[tuple[int, Path], int] = {}  # -> an open file, for as long as the process lives; a fork inherits it, but not its lock


class _Entry(NamedTuple):
    used: float  # seconds since 1970
    size: int  # bytes
    place: Path


def hold(place: Path) -> None:
    """Say that this process uses a directory from now on, whether it is there yet or not; waits where it is being taken away."""
    own = _own(place)
    if own not in _held:
        file = os.open(_use_file(place), os.O_RDWR | os.O_CREAT, 0o666)
        _lock(file, alone=False)
        _held[own] = file
    os.utime(_use_file(place))


def shrink(directory: Path, max_bytes: int, *, manifest: str) -> list[Path]:
    """What was taken away so that the directories in one take no more than `max_bytes`, or as little above it as what is in use allows.

    Args:
        directory: holds them.
        max_bytes: of all files in them.
        manifest: a file that each of them has, so that nothing else is looked at.
    """
    entries = sorted(_entry(path.parent) for path in directory.glob(f"*/{manifest}"))
    total, gone = sum(entry.size for entry in entries), []
    for entry in entries:
        if total <= max_bytes:
            break
        if _take_away(entry.place):
            total -= entry.size
            gone.append(entry.place)
    if gone:
        log.info("%d datasets' examples, used longest ago, were taken out of %s to keep it below its limit", len(gone), directory)
    return gone


def _entry(place: Path) -> _Entry:
    size, used = 0, 0.0
    with suppress(OSError):  # another process has taken it away meanwhile
        used = (_use_file(place) if _use_file(place).exists() else place).stat().st_mtime
        size = sum(file.stat().st_size for file in place.iterdir())
    return _Entry(used, size, place)


def _take_away(place: Path) -> bool:
    """Whether a directory was taken away, which no process was using."""
    if _own(place) in _held:
        return False  # a process's own locks don't stop it
    with suppress(OSError), _alone(place) as alone:
        if alone:
            doomed = place.with_name(f"{place.name}-gone{os.getpid()}.tmp")  # a name that is swept, should this process be killed now
            place.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            return True
    return False


@contextmanager
def _alone(place: Path) -> Iterator[bool]:
    """Whether no process uses a directory, nor will until the block ends."""
    with _use_file(place).open("a+", encoding="ascii") as file:
        yield _lock(file.fileno(), alone=True)


def _lock(file: int, *, alone: bool) -> bool:
    """Whether a lock was had: a shared one, waited for; or one alone, if it can be had at once. It goes with the process or the file.

    POSIX's kind, which a process's children don't inherit; it also goes when any other handle of the same file is closed, so each process
    opens each file once.
    """
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except (ImportError, OSError):
        return False
    return True


def _own(place: Path) -> tuple[int, Path]:
    return os.getpid(), place.resolve()


def _use_file(place: Path) -> Path:
    return place.with_name(place.name + USE)

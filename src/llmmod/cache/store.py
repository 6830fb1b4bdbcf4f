"""Directories under one key each, written once: a reader sees a whole one or none, and all of them stay below a limit.

A directory is written under a temporary name, with a manifest of its files' digests last, and renamed. So two processes at once, or a
killed one, leave nothing torn; damage done afterwards shows in the digests, and the directory is written again.

Above the limit, what was used longest ago goes. A process holds a shared lock on `<key>.use` beside each directory that it uses until it
ends, however it ends; the time of that file is that of the last use. Whoever gets the lock alone may take the directory away. Where the
file system has no locks nobody can know what is in use, so nothing is taken away there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from llmmod.cache.content import NoIdentityError, file_digest

log = logging.getLogger(__name__)

ENVIRONMENT = "LLMMOD_CACHE"  # a directory, instead of the usual one
MANIFEST = "manifest.json"
USE = ".use"
ABANDONED_S = 86_400.0  # a temporary directory untouched for so long has lost its writer
_TEMPORARY = ".tmp"
_in_use: dict[tuple[int, Path], int] = {}  # -> an open file, for as long as the process lives; a fork inherits it, but not its lock


def cache_directory(hub_cache_dir: str | None) -> Path:
    """Where examples are kept: $LLMMOD_CACHE, else `llmmod` in `hub.cache_dir`, else ~/.cache/llmmod."""
    if given := os.environ.get(ENVIRONMENT):
        return Path(given).expanduser()
    return (Path(hub_cache_dir).expanduser() if hub_cache_dir else Path.home() / ".cache") / "llmmod"


class Cache:
    """Directories by key.

    Args:
        directory: holds them; made when the first is written.
        max_bytes: that they may take; whenever one is written, those that were used longest ago and aren't in use go. None: without limit.
    """

    def __init__(self, directory: Path, *, max_bytes: int | None = None) -> None:
        self.directory, self.max_bytes = directory, max_bytes

    def get(self, key: str, write: Callable[[Path], bool]) -> tuple[Path, bool]:
        """The directory of a key, and whether it was there already; it stays there as long as this process lives.

        Args:
            key: letters and digits.
            write: fills an empty directory; false: what it wrote is not to be found again.

        Raises:
            OSError: nothing can be written there.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        # One process at a time writes a key, where the file system can: the others wait, and find it written.
        with (self.directory / f"{key}.lock").open("a") as file:
            _lock_to_write(file, key)
            mark_in_use(self.directory / key)
            if self._is_whole(key):
                return self.directory / key, True
            self._sweep()
            made = Path(tempfile.mkdtemp(prefix=f"{key}-", suffix=_TEMPORARY, dir=self.directory))
            try:
                keep = write(made)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
            if not keep:
                return made, False
            place = self._put(made, key)
        if self.max_bytes is not None:
            shrink(self.directory, self.max_bytes, manifest=MANIFEST)
        return place, False

    def _put(self, made: Path, key: str) -> Path:
        """Give a directory its name, with a manifest in it."""
        digests = {path.name: file_digest(path) for path in sorted(made.iterdir())}
        (made / MANIFEST).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
        try:
            made.rename(self.directory / key)
        except OSError:
            if not self._is_whole(key):
                raise
            shutil.rmtree(made, ignore_errors=True)  # there was no lock, and another process was quicker
        return self.directory / key

    def _is_whole(self, key: str) -> bool:
        """Whether there is a directory for a key with nothing missing or damaged; a damaged one is taken away."""
        place = self.directory / key
        if not place.is_dir():
            return False
        with suppress(OSError, ValueError, AttributeError, NoIdentityError):
            digests = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
            if all(file_digest(place / name) == expected for name, expected in digests.items()):
                return True
        log.warning("%s is damaged, and made again", place)
        shutil.rmtree(place, ignore_errors=True)
        return False

    def _sweep(self) -> None:
        """Take away what killed writers have left."""
        for path in self.directory.glob(f"*{_TEMPORARY}"):
            with suppress(OSError):
                if time.time() - max(entry.stat().st_mtime for entry in (path, *path.iterdir())) > ABANDONED_S:
                    shutil.rmtree(path, ignore_errors=True)


def mark_in_use(place: Path) -> None:
    """Say that this process uses a directory from now on, whether it is there yet or not; waits where it is being taken away."""
    own = os.getpid(), place.resolve()
    if own not in _in_use:
        file = os.open(_use_file(place), os.O_RDWR | os.O_CREAT, 0o666)
        _lock_file(file, alone=False)
        _in_use[own] = file
    os.utime(_use_file(place))


def shrink(directory: Path, max_bytes: int, *, manifest: str) -> list[Path]:
    """What was taken away so that the directories in one take no more than `max_bytes`, or as little above it as what is in use allows.

    Args:
        directory: holds them.
        max_bytes: of all files in them.
        manifest: a file that each of them has, so that nothing else is looked at.
    """
    entries = []  # time of the last use, in seconds since 1970; bytes; directory
    for place in (path.parent for path in directory.glob(f"*/{manifest}")):
        size, used = 0, 0.0
        with suppress(OSError):  # another process has taken it away meanwhile
            used = (_use_file(place) if _use_file(place).exists() else place).stat().st_mtime
            size = sum(file.stat().st_size for file in place.iterdir())
        entries.append((used, size, place))
    total, gone = sum(size for _, size, _ in entries), []
    for _, size, place in sorted(entries):
        if total <= max_bytes:
            break
        if _take_away(place):
            total -= size
            gone.append(place)
    if gone:
        log.info("%d datasets' examples, used longest ago, were taken out of %s to keep it below its limit", len(gone), directory)
    return gone


def _take_away(place: Path) -> bool:
    """Whether a directory was taken away, which no process was using."""
    if (os.getpid(), place.resolve()) in _in_use:
        return False  # a process's own locks don't stop it
    with suppress(OSError), _use_file(place).open("a+", encoding="ascii") as file:
        if _lock_file(file.fileno(), alone=True):
            doomed = place.with_name(f"{place.name}-gone{os.getpid()}.tmp")  # a name that is swept, should this process be killed now
            place.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            return True
    return False


def _use_file(place: Path) -> Path:
    return place.with_name(place.name + USE)


def _lock_file(file: int, *, alone: bool) -> bool:
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


def _lock_to_write(file: IO[str], key: str) -> None:
    """Wait for the lock on a file, which goes with the process that holds it, however it ends.

    The kind of lock that POSIX gives to a process: worker processes inherit the other, `flock`, and may outlive a killed one.
    """
    try:
        import fcntl
    except ImportError:  # Windows; the rename alone then keeps directories whole
        return
    with suppress(OSError):  # a file system without locks
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is making the same examples (%s); waiting for it", key)
            fcntl.lockf(file, fcntl.LOCK_EX)

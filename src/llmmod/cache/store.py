"""Directories, each under a key and written once: a reader sees a complete one or none, and their total size stays below a limit.

A directory is written under a temporary name, with a manifest of its files' digests last, and renamed. So two processes at once, or a
killed one, don't leave a partial directory. The digests show later damage, and the directory is then written again.

Above the limit, the least recently used directories are removed. A process holds a shared lock on `<key>.use` next to each directory that
it uses, until it ends; the time of that file is the time of the last use. A process that gets the exclusive lock may remove the directory.
On a file system without locks, it is unknown which directories are in use, so none are removed.
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

ENVIRONMENT = "LLMMOD_CACHE"  # environment variable: a directory instead of the default
MANIFEST = "manifest.json"
USE = ".use"
ABANDONED_S = 86_400.0  # the writer of a temporary directory that is older than this is assumed dead
_TEMPORARY = ".tmp"
_in_use: dict[tuple[int, Path], int] = {}  # -> a file that stays open as long as the process lives; a fork inherits it, but not its lock


def cache_directory(hub_cache_dir: str | None) -> Path:
    """The directory of cached examples: $LLMMOD_CACHE, else `llmmod` in `hub.cache_dir`, else ~/.cache/llmmod."""
    if given := os.environ.get(ENVIRONMENT):
        return Path(given).expanduser()
    return (Path(hub_cache_dir).expanduser() if hub_cache_dir else Path.home() / ".cache") / "llmmod"


class Cache:
    """Directories by key.

    Args:
        directory: their parent; created with the first.
        max_bytes: their total size; after each write, the least recently used ones that aren't in use are removed. None: unlimited.
    """

    def __init__(self, directory: Path, *, max_bytes: int | None = None) -> None:
        self.directory, self.max_bytes = directory, max_bytes

    def get(self, key: str, write: Callable[[Path], bool]) -> tuple[Path, bool]:
        """The directory of a key, and whether it existed already; it is kept as long as this process lives.

        Args:
            key: letters and digits.
            write: fills an empty directory; if it returns false, the directory is not cached.

        Raises:
            OSError: the directory can't be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        # If the file system has locks, one process at a time writes a key; the others wait and then find it.
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
        """Write a directory's manifest, and rename it to its final name."""
        digests = {path.name: file_digest(path) for path in sorted(made.iterdir())}
        (made / MANIFEST).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
        try:
            made.rename(self.directory / key)
        except OSError:
            if not self._is_whole(key):
                raise
            shutil.rmtree(made, ignore_errors=True)  # without locks, another process was faster
        return self.directory / key

    def _is_whole(self, key: str) -> bool:
        """Whether a key's directory exists and is complete; a damaged one is removed."""
        place = self.directory / key
        if not place.is_dir():
            return False
        with suppress(OSError, ValueError, AttributeError, NoIdentityError):
            digests = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
            if all(file_digest(place / name) == expected for name, expected in digests.items()):
                return True
        log.warning("%s is damaged; it is written again", place)
        shutil.rmtree(place, ignore_errors=True)
        return False

    def _sweep(self) -> None:
        """Remove temporary directories of killed writers."""
        for path in self.directory.glob(f"*{_TEMPORARY}"):
            with suppress(OSError):
                if time.time() - max(entry.stat().st_mtime for entry in (path, *path.iterdir())) > ABANDONED_S:
                    shutil.rmtree(path, ignore_errors=True)


def mark_in_use(place: Path) -> None:
    """Mark a directory as used by this process from now on, whether it exists yet or not; waits while it is being removed."""
    own = os.getpid(), place.resolve()
    if own not in _in_use:
        file = os.open(_use_file(place), os.O_RDWR | os.O_CREAT, 0o666)
        _lock_file(file, alone=False)
        _in_use[own] = file
    os.utime(_use_file(place))


def shrink(directory: Path, max_bytes: int, *, manifest: str) -> list[Path]:
    """Remove the least recently used directories until the rest fit in `max_bytes`; those in use stay. Returns the removed ones.

    Args:
        directory: their parent.
        max_bytes: for all of their files.
        manifest: a file that each of them has; other directories are ignored.
    """
    entries = []  # time of the last use, in seconds since 1970; bytes; directory
    for place in (path.parent for path in directory.glob(f"*/{manifest}")):
        size, used = 0, 0.0
        with suppress(OSError):  # another process has removed it meanwhile
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
        log.info("removed the examples of %d datasets, the least recently used, from %s to stay below its limit", len(gone), directory)
    return gone


def _take_away(place: Path) -> bool:
    """Remove a directory unless a process uses it; returns whether it was removed."""
    if (os.getpid(), place.resolve()) in _in_use:
        return False  # a process's own locks don't stop it
    with suppress(OSError), _use_file(place).open("a+", encoding="ascii") as file:
        if _lock_file(file.fileno(), alone=True):
            doomed = place.with_name(f"{place.name}-gone{os.getpid()}.tmp")  # a name that `_sweep` removes if this process is killed now
            place.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            return True
    return False


def _use_file(place: Path) -> Path:
    return place.with_name(place.name + USE)


def _lock_file(file: int, *, alone: bool) -> bool:
    """Whether a lock was acquired: a shared one, waiting for it, or with `alone` an exclusive one, without waiting.

    It is a POSIX lock: it ends with the process, children don't inherit it, and closing any other handle of the same file releases it too,
    so each process opens each file once.
    """
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except (ImportError, OSError):
        return False
    return True


def _lock_to_write(file: IO[str], key: str) -> None:
    """Wait for the lock on a file; it ends with the process that holds it in every case.

    It is a POSIX lock of a process: worker processes would inherit the other kind, `flock`, and may outlive a killed process.
    """
    try:
        import fcntl
    except ImportError:  # Windows; there only the rename keeps directories complete
        return
    with suppress(OSError):  # a file system without locks
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is writing the same examples (%s); waiting for it", key)
            fcntl.lockf(file, fcntl.LOCK_EX)

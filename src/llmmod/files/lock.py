"""One process at a time in a directory: the second is told which one holds it, or waits.

The lock is of the kind that POSIX gives to a process (`lockf`). It goes with the process, however that ends, and the processes it starts
don't have it; they find in the environment that the directory is theirs too. The file `.lock` says who holds it, and goes with the lock.
Where a file system has no locks, nobody is kept out.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmmod.errors import ConfigError, Problem

log = logging.getLogger("llmmod")
NAME = ".lock"
_HELD = "LLMMOD_HOLDS"  # in the environment: the directories that this process or one above it holds
_EVERY_S = 1.0  # between two looks at a directory that is waited for


class DirectoryInUseError(ConfigError):
    """Another process holds the directory."""


@contextmanager
def holding(directory: Path, *, command: Sequence[str] = (), wait: bool = False) -> Iterator[None]:
    """A context in which no other process holds a directory, which is made.

    Args:
        directory: of a run.
        command: what this process was started as, for the message that others get.
        wait: whether to wait for a process that holds it.

    Raises:
        DirectoryInUseError: it is held, and `wait` is false.
    """
    key, before = str(directory.absolute()), os.environ.get(_HELD, "")
    if key in before.split(os.pathsep):
        yield
        return
    opened = _acquired(directory, wait=wait)
    try:
        if opened is not None:
            about = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.truncate(opened, 0)
            os.pwrite(opened, json.dumps(about | {"command": " ".join(command)}).encode(), 0)
        os.environ[_HELD] = os.pathsep.join(filter(None, [before, key]))
        yield
    finally:
        os.environ[_HELD] = before
        if opened is not None:
            with suppress(OSError):
                (directory / NAME).unlink()
            os.close(opened)


def holder(directory: Path) -> Problem | None:
    """Which process holds a directory; None where none does, this one or the one that started it."""
    if str(directory.absolute()) in os.environ.get(_HELD, "").split(os.pathsep):
        return None
    try:
        opened = os.open(directory / NAME, os.O_RDWR)
    except OSError:
        return None
    try:
        _locked(opened)
    except BlockingIOError:
        return _in_use(directory, opened)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(opened)
    return None


def this_process() -> dict[str, Any]:
    """What tells this process from all others: `host`, `pid`, and when it `began`, in seconds since 1970."""
    import psutil

    return {"host": socket.gethostname(), "pid": os.getpid(), "began": psutil.Process().create_time()}


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether a process, as `this_process` has it, still runs; one of another machine counts as running."""
    import psutil

    if process["host"] != socket.gethostname():
        return True
    try:
        return bool(abs(psutil.Process(process["pid"]).create_time() - process["began"]) < 1)
    except psutil.NoSuchProcess:
        return False


def _acquired(directory: Path, *, wait: bool) -> int | None:
    """The open lock file; None where there can't be one, which whoever writes there next says better."""
    told = False
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            opened = os.open(directory / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            if _locked(opened) and _is_there(opened, directory / NAME):
                return opened
        except BlockingIOError:
            problem = _in_use(directory, opened)
            os.close(opened)
            if not wait:
                raise DirectoryInUseError(problem) from None
            if not told:
                log.warning("%s: %s; waiting for it to end", problem.key, problem.found)
                told = True
            time.sleep(_EVERY_S)
        except OSError:  # a file system without locks
            os.close(opened)
            return None
        else:
            os.close(opened)  # it was removed by the process that held it, in the moment between


def _locked(opened: int) -> bool:
    """Whether the lock was had.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise OSError from error
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # EACCES is what some systems say instead of EAGAIN
        raise BlockingIOError from error
    return True


def _is_there(opened: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(opened), path.stat())
    return False


def _in_use(directory: Path, opened: int) -> Problem:
    try:
        about = json.loads(os.pread(opened, 2**16, 0))
        who = f"process {about['process']} on {about['host']} since {about['since']} ({about['command'] or 'llmmod'})"
    except (ValueError, KeyError, OSError):
        who = "another process"
    do = "Wait until it ends, choose another directory, or set auto_resume=true, which waits and then goes on if something is left to do"
    return Problem("output_dir", f"'{directory}' is held by {who}", "One run at a time writes to a directory", do)

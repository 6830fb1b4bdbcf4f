"""One process at a time in a directory: the second gets an error that names the first, or waits.

The lock is a POSIX lock of a process (`lockf`). It ends with the process in every case, and the processes that it starts don't inherit it;
an environment variable tells them that they may use the directory too. The file `.lock` names the holder, and is removed with the lock.
On a file system without locks, other processes are not kept out.
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
_HELD = "LLMMOD_HOLDS"  # environment variable: the directories that this process or one of its parents holds
_EVERY_S = 1.0  # between two tries to lock a directory


class DirectoryInUseError(ConfigError):
    """Another process holds the directory."""


@contextmanager
def holding(directory: Path, *, command: Sequence[str] = (), wait: bool = False) -> Iterator[None]:
    """A context in which only this process holds a directory; it is created.

    Args:
        directory: of a run.
        command: the command of this process, for the message to others.
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
    """The problem of a directory that another process holds; None if it is free, or held by this process or one that started it."""
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
    """The identity of this process: `host`, `pid`, and when it `began`, in seconds since 1970."""
    import psutil

    return {"host": socket.gethostname(), "pid": os.getpid(), "began": psutil.Process().create_time()}


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether a process, identified as in `this_process`, still runs; one on another machine counts as running."""
    import psutil

    if process["host"] != socket.gethostname():
        return True
    try:
        return bool(abs(psutil.Process(process["pid"]).create_time() - process["began"]) < 1)
    except psutil.NoSuchProcess:
        return False


def _acquired(directory: Path, *, wait: bool) -> int | None:
    """The open lock file; None if it can't be created: the next write to the directory reports that better."""
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
            os.close(opened)  # its holder removed it in the meantime


def _locked(opened: int) -> bool:
    """Whether the lock was acquired.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise OSError from error
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # some systems return EACCES instead of EAGAIN
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
    do = "Wait until it ends, choose another directory, or set auto_resume=true, which waits and then continues an unfinished run"
    return Problem("output_dir", f"'{directory}' is held by {who}", "Only one run at a time may write to a directory", do)

"""Signals to a process that has started others: the processes of a training, the jobs of a sweep, the workers of a data loader.

Processes and jobs finish their optimizer step and save a checkpoint (`trainers.callbacks.interrupt`). Here they get the signal, and are
killed where they don't notice it. Workers ignore it.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from llmmod.distributed import rank
from llmmod.errors import one_line

NOTICED = "LLMMOD_NOTICED"  # the environment variable with the directory where processes note a signal
SAME_WISH_S = 3.0  # torchrun forwards to its processes a signal that the terminal has already sent them
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
_JOB_PROCESSES = ("popen_loky_posix", "submitit.core._submit")  # on the command lines of joblib's and submitit's processes
_STOPS = {getattr(signal, name).value for name in (*_SIGNALS, "SIGHUP", "SIGQUIT") if hasattr(signal, name)}
_NOTICE_S = 60.0  # in which one of the processes must notice a signal
log = logging.getLogger("llmmod")


def note_signal() -> None:
    """Let the process that started this one know that a signal has been noticed, and that the training ends after its step."""
    if directory := os.environ.get(NOTICED):
        with suppress(OSError):
            (Path(directory) / f"{NOTICED}-{rank()}").touch()


@contextmanager
def killed_if_hung(directory: Path) -> Iterator[None]:
    """A context in which a second signal kills the processes that the launcher started, as does a first one that none of them notices.

    A process that waits in a collective for a peer that never comes runs no signal handlers of Python, and torch's launcher would wait as
    long for it as for one that saves a checkpoint.

    Args:
        directory: named on the command line of each process; `note_signal` writes to it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    os.environ[NOTICED] = str(directory)
    watcher = threading.Thread(target=_watch, args=(readable, directory), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.environ.pop(NOTICED)
        os.close(writable)  # ends the watcher
        watcher.join()
        os.close(readable)


def _watch(readable: int, directory: Path) -> None:
    """Read the numbers of this process's signals until the end of the file, and kill the processes where they are to be."""
    first: float | None = None
    noticed = False
    while True:
        wait_s = None if first is None or noticed else max(0.0, first + _NOTICE_S - time.monotonic())
        if not select.select([readable], [], [], wait_s)[0]:
            noticed = any(directory.glob(f"{NOTICED}-*"))
            if noticed:
                continue
            log.warning("The processes have not noticed the signal for %.0f s: they are killed", _NOTICE_S)
        elif not (numbers := os.read(readable, 64)):
            return
        elif not _STOPS & set(numbers):
            continue
        elif first is None or time.monotonic() - first < SAME_WISH_S:
            first = first or time.monotonic()
            continue
        _kill_processes(directory)
        noticed = True


def _kill_processes(directory: Path) -> None:
    import psutil

    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if any(str(directory) in argument for argument in process.cmdline()):
                for each in (*process.children(recursive=True), process):
                    with suppress(psutil.NoSuchProcess):
                        each.kill()


@contextmanager
def signals_to_jobs(*, apart: bool) -> Iterator[list[int]]:
    """A context in which a signal goes to the jobs of a sweep in other processes of this machine, which save a checkpoint and end.

    A second signal isn't held back. A terminal sends Ctrl-C to all processes itself. Yields the list of the signals so far.

    Args:
        apart: whether there are such jobs; if not, signals are left to others.
    """
    received: list[int] = []
    if not apart or threading.current_thread() is not threading.main_thread():
        yield received
        return

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        restore()
        if number != signal.SIGINT or not os.isatty(0):
            import psutil

            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if any(sign in " ".join(process.cmdline()) for sign in _JOB_PROCESSES):
                        process.send_signal(number)
        with suppress(OSError):
            os.write(2, f"{signal.Signals(number).name}: the jobs finish their steps and save; once more ends the sweep at once\n".encode())

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    handlers = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name))}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, pass_on)
    try:
        yield received
    finally:
        restore()


@contextmanager
def handlers_kept(names: Iterable[str], *, without: Sequence[str] = ()) -> Iterator[None]:
    """A context in which others may set signal handlers; afterwards, the earlier ones are restored.

    Args:
        names: of the signals.
        without: signals without a handler in the context.
    """
    main = threading.current_thread() is threading.main_thread()
    numbers = [signal.Signals[name] for name in (*names, *without)] if main else []
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    try:
        for name in without if main else ():
            signal.signal(signal.Signals[name], signal.SIG_DFL)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def as_sigterm(name: str) -> Iterator[list[Callable[[int, Any], Any]]]:
    """A context in which a signal that has a handler acts as SIGTERM. Yields a list that gets its handler when the signal comes."""
    number = getattr(signal, name, None)
    before: Any = None if number is None else signal.getsignal(number)
    postponed: list[Callable[[int, Any], Any]] = []
    if number is None or not callable(before) or threading.current_thread() is not threading.main_thread():
        yield postponed
        return

    def act(number: int, frame: Any) -> None:
        postponed.append(before)
        signal.signal(number, signal.SIG_IGN)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(number, act)
    try:
        yield postponed
    finally:
        signal.signal(number, before)


def queue_again(handler: Callable[[int, Any], Any], number: int) -> None:
    """Let submitit queue this job again, after the checkpoint is saved.

    Slurm sends SIGTERM to a job that is queued again; it would interrupt submitit, so it is ignored. Returns only if the job is not queued
    again, which is logged.

    Args:
        handler: submitit's handler of the signal; it ends the process.
        number: of the signal.
    """
    before = {name: signal.signal(getattr(signal, name), signal.SIG_IGN) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)}
    try:
        handler(number, None)
    except Exception as error:  # too many times, or Slurm refuses
        log.warning("this job is not queued again: %s", one_line(error, 200))
    for name, kept in before.items():
        signal.signal(getattr(signal, name), kept if kept is not None else signal.SIG_DFL)


def init_worker(init: Callable[[int], None] | None, number: int) -> None:
    """Let a worker of a data loader ignore the signals that end a training: it is needed until the end of the step.

    Slurm sends SIGTERM to all processes of a job, and a terminal sends Ctrl-C to all.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if init is not None:
        init(number)


@cache
def kill_workers_at_exit() -> None:
    """At the exit of this process, kill the workers that an error has left; multiprocessing would end them by SIGTERM, and wait."""

    def kill() -> None:
        for process in active_children():
            if process.daemon:
                process.kill()

    atexit.register(kill)

"""Runs of llmmod in forks of a process with everything imported, and the keys left out of comparisons of two runs: Linux and macOS."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMES = ("runtime", "per_second", "step_time", "seconds", "preparation_time")  # parts of the names of figures that are times


def import_everything() -> None:
    """Import all that any run imports, since every fork would pay for it again; the garbage collector would take a quarter of the time.

    This process and its forks compute with one thread: OpenMP's other threads do not exist in a fork, which would wait for them forever.
    """
    import torch

    import llmmod

    torch.set_num_threads(1)
    gc.disable()
    for name in ("peft", "peft.tuners.lora.bnb", "trl", "matplotlib.figure"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(llmmod.__path__, "llmmod."):
        if not module.name.startswith(("llmmod.devtools", "llmmod.__main__")):
            importlib.import_module(module.name)
    gc.freeze()
    gc.enable()


def start(do: Callable[[], object], log: Path) -> int:
    """Start something in a process of its own, which has imported what this one has; its number. What it says is added to the log."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        do()
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def ended(process: int, *, within_s: float | None = None) -> int | None:
    """How a process ended, as `os.waitstatus_to_exitcode` says it; None: it still runs after that time."""
    limit = None if within_s is None else time.monotonic() + within_s
    while True:
        done, status = os.waitpid(process, 0 if limit is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if limit is not None and time.monotonic() > limit:
            return None
        time.sleep(0.002)


def without_times(value: Any) -> Any:
    """The same, without the entries of mappings that are times, however deep; tuples become lists."""
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if not any(part in str(name) for part in TIMES)}
    return [without_times(inner) for inner in value] if isinstance(value, list | tuple) else value

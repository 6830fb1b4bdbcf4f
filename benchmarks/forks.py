"""Forks of a process that has imported everything, for runs of llmmod; and results without their times. Linux and macOS."""

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

TIMES = ("runtime", "per_second", "step_time", "seconds", "preparation_time")  # a figure whose name has one of these in it is a time


def import_everything() -> None:
    """Import everything that a run imports, so that forks don't do it again; garbage collection would take a quarter of the time.

    This process and its forks compute with one thread: OpenMP's other threads do not exist in a fork, which would wait for them forever.
    """
    import torch

    import llmmod

    torch.set_num_threads(1)
    gc.disable()
    for name in ("peft", "peft.tuners.lora.bnb", "trl", "matplotlib.figure", "matplotlib.backends.backend_agg", "rouge_score.rouge_scorer"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(llmmod.__path__, "llmmod."):
        if not module.name.startswith("llmmod.__main__"):
            importlib.import_module(module.name)
    importlib.import_module("llmmod.metrics").words("一")  # loads jieba's dictionary
    gc.freeze()
    gc.enable()


def start(do: Callable[[], object], log: Path) -> int:
    """Call `do` in a fork of this process, which appends its output to the log; returns the id of the process."""
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
    """The exit code of a process, as `os.waitstatus_to_exitcode` gives it; None if it still runs after `within_s` seconds."""
    limit = None if within_s is None else time.monotonic() + within_s
    while True:
        done, status = os.waitpid(process, 0 if limit is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if limit is not None and time.monotonic() > limit:
            return None
        time.sleep(0.002)


def without_times(value: Any) -> Any:
    """The value without the entries of mappings that are times, at any depth; tuples become lists."""
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if not any(part in str(name) for part in TIMES)}
    return [without_times(inner) for inner in value] if isinstance(value, list | tuple) else value

"""How far a long piece of work has come, where it isn't a training: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llmmod.stages.loop.progress import clock

log = logging.getLogger("llmmod")
_EVERY_S = 10.0


@contextmanager
def counting(what: str, total: int, *, bar: bool | None = None) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of things done since the last call.

    Args:
        what: is being done.
        total: things to do.
        bar: None: where stderr is a terminal.
    """
    if sys.stderr.isatty() if bar is None else bar:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(what, total=total)
            yield lambda more: shown.advance(task, more)
    else:
        yield _lines(what, total)


def _lines(what: str, total: int) -> Callable[[int], None]:
    """Logs a line every ten seconds at most, with the time left."""
    began = told = time.monotonic()
    done = 0

    def count(more: int) -> None:
        nonlocal done, told
        done, now = done + more, time.monotonic()
        if now - told >= _EVERY_S and done:
            told = now
            log.info("%s %d/%d  %s left", what, done, total, clock((now - began) / done * (total - done)))

    return count

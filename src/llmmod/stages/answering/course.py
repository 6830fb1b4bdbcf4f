"""The course of a run that learns from rewards, as a picture: what answers earn, and how far the policy has gone for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from llmmod.stages.loop.curve import loss_curve, points, save_png

Panel = tuple[str, tuple[tuple[str, str, str], ...]]  # what its axis says; name in the log, what it is called, colour


def course(state: Callable[[], Any], path: Path, panels: Sequence[Panel]) -> AbstractContextManager[None]:
    """Draw a PNG of these panels when the block ends, whichever way."""
    return loss_curve(state, path, functools.partial(draw_course, panels=panels))


def draw_course(history: Sequence[dict[str, float]], path: Path, panels: Sequence[Panel]) -> bool:
    """Write `history`, a trainer's log, as a PNG, and return whether there was anything to draw; a panel without anything is left out."""
    told = [panel for panel in panels if any(points(history, name) or points(history, f"eval_{name}") for name, _, _ in panel[1])]
    if not told:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5 * len(told)), layout="constrained")
    column = figure.subplots(len(told), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, lines) in zip(column, told, strict=True):
        axes.set_ylabel(label)
        for name, said, colour in lines:
            _line(axes, points(history, name), label=said, color=colour)
            _line(axes, points(history, f"eval_{name}"), label=f"{said.split(':')[0]}, held out", color=colour, marker="o", linestyle="--")
        axes.legend()
        axes.grid(alpha=0.3)
    column[-1].set_xlabel("optimizer step")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(FigureCanvasAgg(figure), path)
    return True


def _line(axes: Any, course: Sequence[tuple[float, float]], **style: Any) -> None:
    if course:
        axes.plot(*zip(*course, strict=True), **style)

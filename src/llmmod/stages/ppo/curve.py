"""The course of a PPO run as a picture: what answers earn, and how far the policy has gone for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from llmmod.stages.curve import loss_curve, points, save_png

FILE = "ppo.png"
_PANELS = (
    ("reward", (("score", "score", "tab:green"), ("reward", "reward: score less what divergence costs", "tab:blue"))),
    ("KL to the reference, nats an answer", (("kl", "KL", "tab:red"),)),
)


def ppo_curve(state: Callable[[], Any], directory: Path) -> AbstractContextManager[None]:
    """Draw `ppo.png` into a directory when the block ends, whichever way."""
    return loss_curve(state, directory / FILE, draw_course)


def draw_course(history: Sequence[dict[str, float]], path: Path) -> bool:
    """Write `history`, a trainer's log, as a PNG, and return whether there was anything to draw."""
    if not any(points(history, name) or points(history, f"eval_{name}") for _, lines in _PANELS for name, _, _ in lines):
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, (label, lines) in zip((above, below), _PANELS, strict=True):
        axes.set_ylabel(label)
        for name, told, colour in lines:
            _line(axes, points(history, name), label=told, color=colour)
            _line(axes, points(history, f"eval_{name}"), label=f"{told.split(':')[0]}, held out", color=colour, marker="o", linestyle="--")
        axes.legend()
        axes.grid(alpha=0.3)
    below.set_xlabel("optimizer step")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(FigureCanvasAgg(figure), path)
    return True


def _line(axes: Any, course: Sequence[tuple[float, float]], **style: Any) -> None:
    if course:
        axes.plot(*zip(*course, strict=True), **style)

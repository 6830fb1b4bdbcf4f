"""The plots of a training: the loss curve, and the curves of metrics such as reward and KL.

They are drawn when the training ends, also when it was interrupted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from llmmod.files.paths import atomic_write

Panel = tuple[str, tuple[tuple[str, str, str], ...]]  # axis label; for each line: name in the log, label, colour
_SMOOTHING = 0.8  # weight of the average so far at each new point


@contextmanager
def loss_curve(
    state: Callable[[], Any], path: Path, draw: Callable[[Sequence[dict[str, float]], Path], bool] | None = None
) -> Iterator[None]:
    """Draw the curve to `path` when the block ends, also after an interruption or an error.

    Args:
        state: returns the trainer's state; only the first process draws.
        path: the PNG.
        draw: writes another plot from the trainer's log; None: `draw_loss_curve`.
    """
    draw = draw or draw_loss_curve
    try:
        yield
    except BaseException:
        # An error here, such as a full disk, must not hide the one that is raised.
        with suppress(Exception):
            _draw(state(), path, draw)
        raise
    _draw(state(), path, draw)


def _draw(state: Any, path: Path, draw: Callable[[Sequence[dict[str, float]], Path], bool]) -> None:
    if state.is_world_process_zero:
        draw(state.log_history, path)


def draw_loss_curve(history: Sequence[dict[str, float]], path: Path) -> bool:
    """Write `history`, a trainer's log, as a PNG, and return whether there was anything to draw."""
    train, held_out = points(history, "loss"), points(history, "eval_loss")
    if not train and not held_out:
        return False
    # Imported here, since it takes half a second. pyplot has global state, and its backend may need a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="optimizer step", ylabel="loss")
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.35, label="training")
        axes.plot(steps, smoothed(losses), color="tab:blue", label="training, smoothed")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="tab:orange", marker="o", label="validation")
    axes.legend()
    axes.grid(alpha=0.3)
    save_png(FigureCanvasAgg(figure), path)
    return True


def smoothed(values: Sequence[float], keep: float = _SMOOTHING) -> list[float]:
    """The exponential moving average with bias correction (Kingma & Ba 2015, section 3)."""
    average, weight, averages = 0.0, 0.0, []
    for value in values:
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        averages.append(average / weight)
    return averages


def points(history: Sequence[dict[str, float]], name: str) -> list[tuple[float, float]]:
    """(optimizer step, value) of each entry of a log that has this name."""
    return [(entry["step"], entry[name]) for entry in history if name in entry]


def save_png(canvas: Any, path: Path) -> None:
    """Write a picture, whole or not at all."""
    with atomic_write(path) as partial, partial.open("wb") as file:
        canvas.print_png(file)


def metric_curves(state: Callable[[], Any], path: Path, panels: Sequence[Panel]) -> AbstractContextManager[None]:
    """Draw a PNG of these panels when the block ends, also after an interruption or an error."""
    return loss_curve(state, path, functools.partial(draw_metric_curves, panels=panels))


def draw_metric_curves(history: Sequence[dict[str, float]], path: Path, panels: Sequence[Panel]) -> bool:
    """Write `history`, a trainer's log, as a PNG, and return whether there was anything to draw; empty panels are left out."""
    drawn = [panel for panel in panels if any(points(history, name) or points(history, f"eval_{name}") for name, _, _ in panel[1])]
    if not drawn:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5 * len(drawn)), layout="constrained")
    column = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, lines) in zip(column, drawn, strict=True):
        axes.set_ylabel(label)
        for name, text, colour in lines:
            _line(axes, points(history, name), label=text, color=colour)
            _line(axes, points(history, f"eval_{name}"), label=f"{text.split(':')[0]}, held out", color=colour, marker="o", linestyle="--")
        axes.legend()
        axes.grid(alpha=0.3)
    column[-1].set_xlabel("optimizer step")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(FigureCanvasAgg(figure), path)
    return True


def _line(axes: Any, values: Sequence[tuple[float, float]], **style: Any) -> None:
    if values:
        axes.plot(*zip(*values, strict=True), **style)

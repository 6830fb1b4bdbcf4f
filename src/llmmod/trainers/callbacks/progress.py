"""Progress of a training (steps, loss, tokens per second, time left) as lines and as pictures, and progress of other long work.

A terminal gets a bar that redraws itself; elsewhere there is a line at each logging step, or every ten seconds. The loss curve and the
curves of metrics such as reward and KL are drawn when the training ends, also when it was interrupted.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from llmmod.files.paths import atomic_write

log = logging.getLogger("llmmod.train")
_run_log = logging.getLogger("llmmod")
_EVERY_S = 10.0  # between the lines of `counting`
Panel = tuple[str, tuple[tuple[str, str, str], ...]]  # axis label; for each line: name in the log, label, colour
_SMOOTHING = 0.8  # weight of the average so far at each new point
# Numbers of a log that are shown: their names and formats.
_NAMES = {
    "loss": "loss", "eval_loss": "validation loss", "reward": "reward", "eval_reward": "reward on held-out prompts",
    "learning_rate": "learning rate",
}  # fmt: skip
_FORMATS = {"loss": ".4f", "eval_loss": ".4f", "reward": ".3f", "eval_reward": ".3f", "learning_rate": ".2e"}

_GENERATED = "eval_predict_"  # metrics of answers to held-out prompts


class TrainingProgress(TrainerCallback):  # type: ignore[misc]
    """Shows a training on stderr, on the first process only.

    Args:
        bar: None: a bar if stderr is a terminal; False: never a bar.
    """

    def __init__(self, bar: bool | None = None) -> None:
        self._wants_bar = sys.stderr.isatty() if bar is None else bar
        self._progress: Progress | None = None
        self._busy_s = 0.0
        self._step_began: float | None = None
        self._steps = 0
        self._tokens_before = 0
        self._logs: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start counting; the earlier steps of a resumed training took none of this run's time."""
        self._busy_s, self._steps, self._tokens_before = 0.0, 0, state.num_input_tokens_seen
        if state.is_world_process_zero and self._wants_bar:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"))
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task("train", total=state.max_steps, completed=state.global_step, numbers="")
            self._progress.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember when a step begins."""
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the time of the step, without evaluation and saving, and move the bar."""
        if self._step_began is not None:
            self._busy_s += time.perf_counter() - self._step_began
        self._steps += 1
        self._show(state, "train")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show that an evaluation is running."""
        self._show(state, "evaluate")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Keep loss and reward for the bar; without a bar, log a line."""
        shown = {name: value for name, value in (logs or {}).items() if name in _FORMATS or name.startswith(_GENERATED)}
        self._logs |= shown
        if not state.is_world_process_zero or not shown:
            return
        level = logging.INFO if self._progress is None else logging.DEBUG
        log.log(level, "%s", self._line(state, shown))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar; it may be called twice."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def tokens_per_second(self, state: Any) -> float | None:
        """Tokens per second of training, without padding; None if they aren't counted."""
        tokens = state.num_input_tokens_seen - self._tokens_before
        return tokens / self._busy_s if tokens > 0 and self._busy_s > 0 else None

    def _show(self, state: Any, description: str) -> None:
        if self._progress is not None:
            numbers = [f"{_NAMES[name]} {self._logs[name]:{_FORMATS[name]}}" for name in ("loss", "reward") if name in self._logs]
            line = "  ".join([*numbers, *self._speed(state)])
            self._progress.update(self._task, description=description, completed=state.global_step, numbers=line)

    def _line(self, state: Any, shown: dict[str, float]) -> str:
        parts = [f"step {state.global_step}/{state.max_steps}"]
        parts += [f"{_NAMES[name]} {shown[name]:{form}}" for name, form in _FORMATS.items() if name in shown]
        parts += [f"{name.removeprefix(_GENERATED)} {value:.4g}" for name, value in shown.items() if name.startswith(_GENERATED)]
        return "  ".join([*parts, *(self._speed(state) if "loss" in shown else [])])

    def _speed(self, state: Any) -> list[str]:
        rate = self.tokens_per_second(state)
        left = self._busy_s / self._steps * (state.max_steps - state.global_step) if self._steps else None
        return [*([f"{rate:,.0f} tokens/s"] if rate else []), *([f"{clock(left)} left"] if left is not None else [])]


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def counting(what: str, total: int, *, bar: bool | None = None) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of items finished since the last call.

    Args:
        what: the work.
        total: the number of items.
        bar: whether to show a bar; None: if stderr is a terminal.
    """
    if sys.stderr.isatty() if bar is None else bar:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda more: progress.advance(task, more)
    else:
        yield _lines(what, total)


def _lines(what: str, total: int) -> Callable[[int], None]:
    """Logs a line with the time left, at most every ten seconds."""
    began = logged = time.monotonic()
    done = 0

    def count(more: int) -> None:
        nonlocal done, logged
        done, now = done + more, time.monotonic()
        if now - logged >= _EVERY_S and done:
            logged = now
            _run_log.info("%s %d/%d  %s left", what, done, total, clock((now - began) / done * (total - done)))

    return count




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

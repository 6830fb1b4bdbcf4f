"""Ctrl-C and SIGTERM during training: the step under way is finished, a checkpoint is written, then the run ends as it would have.

A second signal ends it at once. `training.resume_from_checkpoint` goes on from there, to the same bits as without the interruption.

A loss that is no number any more ends the run, before it spoils the weights.

transformers' own `logging_nan_inf_filter` replaces such a loss by the average of the others in what it logs, and training goes on with
weights that are NaN.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from llmmod.errors import RunError
from llmmod.trainers.callbacks.resume import checkpoints

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedBetweenSteps(Exception):  # noqa: N818 - no error
    """Training was stopped, with all weights as the last step left them."""


class StopAfterStep(TrainerCallback):  # type: ignore[misc]
    """Holds a signal back until the step is finished.

    Used as a context around `trainer.train()`; on leaving, the signal is raised again for whoever handled it before.

    Args:
        enabled: False where several processes train together: they would stop at different steps and wait for one another.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.caught: int | None = None
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopAfterStep:
        if self._enabled:
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._give_back()
        if self.caught is not None and kind is None:
            signal.raise_signal(self.caught)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where a checkpoint of the last step is gone on from; transformers 5.23 would take another step.

        Raises:
            StoppedBetweenSteps: if no step is left.
        """
        if state.global_step >= state.max_steps:
            raise StoppedBetweenSteps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop before another step.

        Raises:
            StoppedBetweenSteps: if a signal came.
        """
        if self.caught is not None:
            raise StoppedBetweenSteps

    # Nor is the end of an evaluation waited for.
    on_epoch_begin = on_prediction_step = on_step_begin

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        self._give_back()
        # Not through logging: the signal may have come in the middle of a write to the same stream.
        with suppress(OSError):  # Ctrl-C has ended `| tee` too
            os.write(2, f"{signal.Signals(number).name}: finishing this step, then saving; once more ends it at once\n".encode())

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}


_WATCHED = ("loss", "eval_loss")


def not_finite(what: str, value: float, *, step: int, args: Any) -> RunError:
    """The error that says at which optimizer step `what` stopped being a number, what to try, and what is left.

    Args:
        what: `the loss`, `the gradient`, …
        value: nan, inf or -inf.
        step: optimizer steps, from 1.
        args: the trainer's arguments.
    """
    kept = checkpoints(Path(args.output_dir))
    left = f"The last checkpoint, {kept[-1]}, is from before" if kept else "No checkpoint had been written yet"
    norm = args.max_grad_norm
    clipping = f"a lower training.max_grad_norm (it was {norm:g})" if norm else "training.max_grad_norm=1 (it was 0, no clipping)"
    return RunError(
        f"training: {what} became {value} at optimizer step {step}. Try a lower training.learning_rate (it was {args.learning_rate:g}), "
        f"{clipping}, more training.warmup_steps, or model.dtype=float32. {left}."
    )


class StopWhenNotFinite(TrainerCallback):  # type: ignore[misc]
    """Ends the run where a logged or an evaluation loss is no number, also with trainers that don't look at each step's."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Look at what was logged.

        Raises:
            RunError: if a loss is NaN or infinite.
        """
        for name in _WATCHED:
            value = (logs or {}).get(name)
            if isinstance(value, float) and not math.isfinite(value):
                raise not_finite("the evaluation loss" if name == "eval_loss" else "the loss", value, step=state.global_step, args=args)

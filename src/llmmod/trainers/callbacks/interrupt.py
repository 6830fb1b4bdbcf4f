"""Ending a training early: after a signal, for a loss that is not finite, if the metric stops improving, and by a sweep's pruner.

After Ctrl-C, SIGTERM or SIGUSR1 (Slurm sends it before the time limit), the current step finishes, a checkpoint is written, and the run
ends with the signal's exit code. A second signal ends it at once. Several processes agree at the end of each step.
`training.resume_from_checkpoint` continues from there with the same bits as an uninterrupted run.

A loss that is NaN or infinite ends the run before it spoils the weights. transformers' `logging_nan_inf_filter` instead replaces it in
the log by the average of the others, and training continues with weights that are NaN.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from llmmod.distributed import rank
from llmmod.errors import Pruned, RunError
from llmmod.instantiate import import_own
from llmmod.signals import SAME_WISH_S, note_signal
from llmmod.trainers.callbacks.resume import checkpoints

log = logging.getLogger("llmmod.train")
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
_QUEUES = (signal.SIGUSR2,) if hasattr(signal, "SIGUSR2") else ()
_LOSSES = ("loss", "eval_loss")


class StoppedBetweenSteps(Exception):  # noqa: N818 - not an error
    """Training was stopped; the weights are those of the last step."""


class StopAfterStep(TrainerCallback):  # type: ignore[misc]
    """Delays a signal until the step is finished.

    Use it as a context around `trainer.train()`. At the end of the block, the signal is raised again for the previous handler.

    Set `stops_at_end` to False for a trainer that does not take another step after a checkpoint of the last step.

    Args:
        several: whether several processes train together: they stop after the same step, if one of them gets a signal.
    """

    def __init__(self, *, several: bool = False) -> None:
        self.caught: int | None = None
        self.stops_at_end = True
        self._several, self._received, self._when_s = several, 0, 0.0
        self._enabled = threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopAfterStep:
        if self._enabled:
            # SIGUSR2 where something listens to it: submitit, which starts a job again that its queue has stopped.
            listening = [number for number in _QUEUES if callable(signal.getsignal(number))]
            wanted = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # SIGINT, in the background of a script
            self._before = {number: signal.signal(number, self._on_signal) for number in (*wanted, *listening)}
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._restore_handlers()
        if self.caught is not None and kind is None:
            signal.raise_signal(self.caught)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if training resumes from a checkpoint of the last step; transformers 5.23 would do another step.

        Raises:
            StoppedBetweenSteps: if no step is left.
        """
        if self.stops_at_end and state.global_step >= state.max_steps:
            raise StoppedBetweenSteps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop before another step.

        Raises:
            StoppedBetweenSteps: if a signal came.
        """
        if self.caught is not None:
            raise StoppedBetweenSteps

    # A signal ends an evaluation too.
    on_epoch_begin = on_prediction_step = on_step_begin

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let all processes know of a signal that one of them got."""
        if self._several:
            found = torch.tensor(self._received, device=args.device)
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
            self.caught = int(found) or None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._several:
            if time.monotonic() - self._when_s < SAME_WISH_S:
                return
            self._when_s = time.monotonic()
            if self._received:
                self._restore_handlers()
                signal.raise_signal(number)
                return
            self._received = number
            note_signal()
        else:
            self.caught = number
            self._restore_handlers()
        # Without logging: the signal may have interrupted a write to the same stream.
        with suppress(OSError):  # Ctrl-C also ends `| tee`
            if rank() != 0:
                return
            os.write(2, f"{signal.Signals(number).name}: finishing this step, then saving; once more ends it at once\n".encode())

    def _restore_handlers(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}


def not_finite(what: str, value: float, *, step: int, args: Any) -> RunError:
    """The error that says at which optimizer step `what` became NaN or infinite, what to try, and which checkpoint is left.

    Args:
        what: `the loss`, `the gradient`, …
        value: nan, inf or -inf.
        step: optimizer steps, from 1.
        args: the trainer's arguments.
    """
    kept = checkpoints(Path(args.output_dir))
    left = f"The last checkpoint, {kept[-1]}, is from before" if kept else "A checkpoint had not been written yet"
    norm = args.max_grad_norm
    clipping = f"a lower training.max_grad_norm (it was {norm:g})" if norm else "training.max_grad_norm=1 (it was 0, no clipping)"
    return RunError(
        f"training: {what} became {value} at optimizer step {step}. Try a lower training.learning_rate (it was {args.learning_rate:g}), "
        f"{clipping}, more training.warmup_steps, or model.dtype=float32. {left}."
    )


class StopWhenNotFinite(TrainerCallback):  # type: ignore[misc]
    """Ends the run if a logged loss is NaN or infinite, also with trainers that don't check each step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Check the losses in the log.

        Raises:
            RunError: if a loss is NaN or infinite.
        """
        for name in _LOSSES:
            value = (logs or {}).get(name)
            if isinstance(value, float) and not math.isfinite(value):
                raise not_finite("the evaluation loss" if name == "eval_loss" else "the loss", value, step=state.global_step, args=args)


class StopWhenPruned(TrainerCallback):  # type: ignore[misc]
    """Ends a trial of a sweep at an evaluation if `hydra.sweeper.pruner` decides that other trials were better by then."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Report the metrics; if the trial ends, draw its curves first.

        Raises:
            Pruned: the trial ends.
        """
        if "LLMMOD_TRIAL" not in os.environ or state.global_step == 0 or args.world_size > 1:
            return
        # Counted in the log, which checkpoints have.
        evaluated = {entry["step"] for entry in state.log_history if entry.get("step") and any(name.startswith("eval_") for name in entry)}
        try:
            import_own("llmmod.sweep.search.report_evaluation")(len(evaluated), metrics or {})
        except Pruned:
            state.save_to_json(str(Path(args.output_dir) / "trainer_state.json"))
            raise


class StopWhenNoBetter(TrainerCallback):  # type: ignore[misc]
    """Ends the training after `patience` evaluations in a row without an improvement on the best one.

    transformers' EarlyStoppingCallback (5.23) keeps its count in the callback, so a resumed run would count from 0. This one counts in the
    log, which is part of a checkpoint. Evaluations that don't have the metric (predictions were not due) don't count, nor does the
    evaluation before the first step.

    Args:
        patience: the number of evaluations.
        threshold: the least difference from the best value that counts as an improvement.
    """

    def __init__(self, patience: int, threshold: float = 0.0) -> None:
        self._patience, self._threshold = patience, threshold

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop before the first step if the training that resumes had already stopped."""
        control.should_training_stop |= self._without_progress(args, state) >= self._patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop after an evaluation if `patience` is used up."""
        if not control.should_training_stop and (count := self._without_progress(args, state)) >= self._patience:
            name = logged_name(args.metric_for_best_model)
            log.info("step %d: %s has not improved for %d evaluations: the training stops", state.global_step, name, count)
            control.should_training_stop = True

    def _without_progress(self, args: Any, state: Any) -> int:
        """The number of evaluations since the metric last improved."""
        name, best, count = logged_name(args.metric_for_best_model), math.nan, 0
        # The same step can be evaluated twice: as a step, and as the end of an epoch.
        for value in {entry["step"]: entry[name] for entry in state.log_history if name in entry and entry.get("step")}.values():
            gain = (value - best) * (1 if args.greater_is_better else -1)
            count = 0 if gain > self._threshold or math.isnan(best) else count + 1
            best = value if gain > 0 or math.isnan(best) else best
        return count


def logged_name(metric: str) -> str:
    """The name in the log of `training.metric_for_best_model`."""
    return metric if metric.startswith("eval_") else f"eval_{metric}"

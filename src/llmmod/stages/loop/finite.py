"""A loss that is no number any more ends the run, before it spoils the weights.

transformers' own `logging_nan_inf_filter` replaces such a loss by the average of the others in what it logs, and training goes on with
weights that are NaN.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llmmod.errors import RunError
from llmmod.stages.loop.resume import checkpoints

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

"""The error of a training that ran out of memory: it names the keys to lower, and the plan's figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from llmmod.errors import LlmmodError, Problem, RunError, one_line

SAID = "plan"  # the session's key of the plan's verdict
_ON_CPU = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine ran out of memory. On a CPU, torch (2.13) only says it in the error's text."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ON_CPU)


@contextmanager
def memory_explained(session: Any, step: str) -> Iterator[None]:
    """A context in which an out-of-memory error becomes one that names the keys to lower.

    Args:
        session: the run's session.
        step: the step that trains.

    Raises:
        RunError: memory ran out.
    """
    try:
        yield
    except LlmmodError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(str(memory_problem(error, session, step))) from error


def memory_problem(error: BaseException, session: Any, step: str) -> Problem:
    """The problem in four parts: the micro-batch, what happened and was planned, smaller values, and other ways to save memory."""
    training, finetune = session.conf(step, "training"), session.conf(step, "finetune")
    key, size, times = "training.per_device_train_batch_size", training.per_device_train_batch_size, training.gradient_accumulation_steps
    said = session.get(SAID)
    planned = f"the plan was: {said}" if said else "it was not planned: 'pipeline=[plan]' shows in seconds what fits"
    smaller = f"Try {size // 2} with training.gradient_accumulation_steps={times * 2}, which trains the same" if size > 1 else ""
    less = [] if training.gradient_checkpointing else ["model.gradient_checkpointing=true (slower)"]
    less += ["dataset.cutoff_len"]
    less += ["training.max_completion_length"] if hasattr(training, "max_completion_length") else []
    less += ["training.per_device_eval_batch_size"] if training.eval_strategy != "no" else []
    less += (
        ["finetune=lora"]
        if not hasattr(finetune, "r")
        else ["finetune=qlora"]
        if session.conf(step, "model").quantization.bits is None
        else []
    )
    return Problem(key, f"{size}, and memory ran out ({one_line(error, 200)}); {planned}", smaller, f"Use less memory: {', '.join(less)}")

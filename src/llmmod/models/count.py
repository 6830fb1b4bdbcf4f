"""How many parameters a model has, and how many of them are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters, each shared one counted once.

    Args:
        trained: those that take gradients.
        total: all.
    """

    trained: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trained / self.total if self.total else 0.0
        return f"{self.trained:,} of {self.total:,} parameters are trained ({share:.2f} %)"


def count_parameters(model: Any) -> ParameterCount:
    """The numbers of a model's parameters, quantized ones by what they stand for rather than by the bytes that hold them."""
    sizes = [(_size(p), p.requires_grad) for p in model.parameters()]
    return ParameterCount(trained=sum(n for n, trained in sizes if trained), total=sum(n for n, _ in sizes))


def _size(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)  # of bitsandbytes.nn.Params4bit: two weights a byte
    return math.prod(state.shape) if state is not None else parameter.numel()

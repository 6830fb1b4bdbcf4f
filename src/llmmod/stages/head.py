"""The LM head of trl's trainers, fed with labelled positions alone, and quick on a CPU.

trl 1.16 never builds the logits of all positions, but two things of it are made for GPUs. It picks the labelled positions before the
head only where Triton runs; elsewhere prompt and padding go through it and are masked afterwards. And it computes the head in tiles
whose logits are computed a second time for the gradient, in favour of memory that a CPU mostly has. Measured for one step of the main
job, 151 labelled positions of 440, 49,152 tokens, 576 channels, one core: 1.85 CPU s as it is, 0.53 s with labelled positions alone,
0.28 s with their logits kept as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl.trainer.utils
from torch.nn import functional

# Logits kept for the gradient: 256 MiB in float32, and as much again for their gradient. Beyond, trl's tiles.
MOST_LOGITS = 2**26


@contextmanager
def lean_head() -> Iterator[None]:
    """Within it, trl's LM head takes labelled positions alone on every device, and few enough of them at once on a CPU.

    Patches what `trl.trainer.utils.add_fused_lm_head` (1.16.0) looks up when it is called; the kernels ask questions of their own.
    """
    asked, function = trl.trainer.utils._use_triton, trl.trainer.utils._ChunkedLogProbFunction
    trl.trainer.utils._use_triton = lambda device: asked(device) or device.type == "cpu"
    trl.trainer.utils._ChunkedLogProbFunction = _Head(function)
    try:
        yield
    finally:
        trl.trainer.utils._use_triton, trl.trainer.utils._ChunkedLogProbFunction = asked, function


class _Head:
    """Stands for trl's ChunkedLogProbFunction."""

    def __init__(self, in_tiles: Any) -> None:
        self._in_tiles = in_tiles

    def apply(
        self,
        hidden: torch.Tensor,  # [rows, channels]
        weight: torch.Tensor,  # [vocabulary, channels]
        bias: torch.Tensor | None,  # [vocabulary]
        targets: torch.Tensor,  # [rows]
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> Any:
        """Log-probability of each target, entropy, two that only other trainers ask for, and whether the target is the likeliest."""
        others = set(outputs) - {"log_probs", "entropy", "is_top1"}
        if hidden.device.type != "cpu" or hidden.shape[0] * weight.shape[0] > MOST_LOGITS or others:
            return self._in_tiles.apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs)
        logits = functional.linear(hidden, weight, bias).float()
        if scale != 1:
            logits = logits * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if temperature != 1:
            logits = logits / temperature
        log_p = functional.log_softmax(logits, dim=-1)
        with torch.no_grad():
            entropy = -torch.linalg.vecdot(log_p.exp(), log_p) if "entropy" in outputs else None
            is_top1 = log_p.argmax(-1) == targets if "is_top1" in outputs else None
        return -functional.nll_loss(log_p, targets, reduction="none"), entropy, None, None, is_top1

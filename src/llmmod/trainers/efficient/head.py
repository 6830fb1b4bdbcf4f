"""The LM head of trl's trainers, fed with labelled positions alone, and quick on a CPU.

trl 1.16 never builds the logits of all positions, but two things of it are made for GPUs. It picks the labelled positions before the
head only where Triton runs; elsewhere prompt and padding go through it and are masked afterwards. And it computes the head in tiles
whose logits are computed a second time for the gradient, in favour of memory that a CPU mostly has. Measured for one step of the main
job, 151 labelled positions of 440, 49,152 tokens, 576 channels, one core: 1.85 CPU s as it is, 0.53 s with labelled positions alone,
0.28 s with their logits kept as well.

A head of float32 after layers of 16 bits is one that `finetune.upcast_head` made so: it computes in float32, under autocast too.

Rows of logits a few at a time, so that no second array of their size is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import trl.trainer.utils
from torch.nn import functional

from llmmod.models.loading.structure import base_model
from llmmod.upstream import require_upstream

require_upstream(__name__)

_ROWS = 32  # whose exponentials are held at once


def tiles(count: int) -> Iterator[slice]:
    """Slices of a few rows each, which cover `count` rows in order."""
    return (slice(start, start + _ROWS) for start in range(0, count, _ROWS))


# Logits kept for the gradient: 256 MiB in float32. Beyond, trl's tiles.
MOST_LOGITS = 2**26
_NUMBERS = ("entropy", "log_sum_sq_probs", "mean_logits")


@contextmanager
def efficient_head(*, only: Sequence[str] | None = None) -> Iterator[None]:
    """Within it, trl's LM head takes labelled positions alone on every device, and few enough of them at once on a CPU.

    Args:
        only: of what the head was made to compute (`add_fused_lm_head(outputs=…)`), what is needed here; None: all of it.

    Patches what `trl.trainer.utils.add_fused_lm_head` (1.16.0) looks up when it is called; the kernels ask questions of their own.
    """
    asked, function = trl.trainer.utils._use_triton, trl.trainer.utils._ChunkedLogProbFunction
    trl.trainer.utils._use_triton = lambda device: asked(device) or device.type == "cpu"
    trl.trainer.utils._ChunkedLogProbFunction = _Head(function, only)
    try:
        yield
    finally:
        trl.trainer.utils._use_triton, trl.trainer.utils._ChunkedLogProbFunction = asked, function


def prepare_head_for_trl(model: Any) -> None:
    """Give a model what trl (1.16) reads of it around its head, where transformers (5.23) calls it otherwise; it is changed in place.

    Of a head with single tokens, peft's wrapper passes on the weight alone; Llama 4's text model names its trunk by another prefix; and
    Phi-3.5-MoE's configuration has `num_local_experts` where the others have `num_experts` too.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and not hasattr(head, "bias"):
        head.bias = None
    plain: Any = base_model(model)
    trunk: Any = getattr(plain, "base_model", None)
    if trunk is plain and hasattr(plain, "model"):
        plain.base_model_prefix = "model"
    config = plain.config.get_text_config() if hasattr(plain.config, "get_text_config") else plain.config
    if hasattr(config, "num_local_experts") and not hasattr(config, "num_experts"):
        type(config).attribute_map = {**type(config).attribute_map, "num_experts": "num_local_experts"}  # another name; nothing is saved


class _Head:
    """Stands for trl's ChunkedLogProbFunction."""

    def __init__(self, in_tiles: Any, only: Sequence[str] | None = None) -> None:
        self._in_tiles, self._only = in_tiles, only

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
        """What of these `outputs` names, each [rows], the others None: the target's log-probability, the entropy, the logarithm of the
        sum of the squared probabilities, the mean of the logits, and whether the target is the likeliest.
        """
        outputs = outputs if self._only is None else tuple(name for name in outputs if name in self._only)
        if weight.dtype is torch.float32 and hidden.dtype in (torch.bfloat16, torch.float16):
            with torch.autocast(hidden.device.type, enabled=False):
                return self.apply(hidden.float(), weight, bias, targets, temperature, chunk_size, softcap, scale, outputs)
        if hidden.device.type != "cpu" or hidden.shape[0] * weight.shape[0] > MOST_LOGITS:
            return self._in_tiles.apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs)
        return _LogProbs.apply(hidden, weight, bias, targets, temperature, softcap, scale, outputs)  # type: ignore[no-untyped-call]


class _LogProbs(torch.autograd.Function):
    """The logits once, kept for the gradient, which is then written over them: no other array of their size is ever made."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # [rows, channels]
        weight: torch.Tensor,  # [vocabulary, channels]
        bias: torch.Tensor | None,  # [vocabulary]
        targets: torch.Tensor,  # [rows]
        temperature: float,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[torch.Tensor | None, ...]:
        """As of `_Head`."""
        raw = functional.linear(hidden, weight, bias)
        logits = raw.float().mul_(scale)
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
        logits.div_(temperature)
        sums = logits.new_empty(len(logits))
        entropy, squares, mean = (logits.new_empty(len(logits)) if name in outputs else None for name in _NUMBERS)
        is_top1 = targets.new_empty(len(logits), dtype=torch.bool) if "is_top1" in outputs else None
        for rows in tiles(len(logits)):
            sums[rows] = logits[rows].logsumexp(-1)
            if entropy is not None:
                entropy[rows] = sums[rows] - torch.linalg.vecdot((logits[rows] - sums[rows, None]).exp_(), logits[rows])
            if squares is not None:
                squares[rows] = (2 * logits[rows]).logsumexp(-1) - 2 * sums[rows]
            if mean is not None:
                mean[rows] = logits[rows].mean(-1)
            if is_top1 is not None:
                is_top1[rows] = logits[rows].argmax(-1) == targets[rows]
        ctx.save_for_backward(hidden, weight, bias, targets, logits, sums)
        ctx.temperature, ctx.softcap, ctx.scale, ctx.dtype = temperature, softcap, scale, raw.dtype
        ctx.mark_non_differentiable(*(output for output in (entropy, squares, mean, is_top1) if output is not None))
        return logits.gather(1, targets[:, None])[:, 0] - sums, entropy, squares, mean, is_top1

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *others: None) -> tuple[torch.Tensor | None, ...]:
        """The gradients of hidden, weight and bias."""
        hidden, weight, bias, targets, logits, sums = ctx.saved_tensors
        for rows in tiles(len(logits)):
            slope = ctx.scale / ctx.temperature
            if ctx.softcap is not None:
                slope = slope * (1 - (logits[rows] * (ctx.temperature / ctx.softcap)).square_())
            found = logits[rows].sub_(sums[rows, None]).exp_().mul_(-grad[rows, None])
            found.scatter_add_(1, targets[rows, None], grad[rows, None].to(found.dtype))
            found.mul_(slope)
        gradient = logits.to(ctx.dtype)
        wanted = ctx.needs_input_grad
        of_hidden = (gradient @ weight.to(ctx.dtype)).to(hidden.dtype) if wanted[0] else None
        of_weight = (gradient.T @ hidden.to(ctx.dtype)).to(weight.dtype) if wanted[1] else None
        of_bias = gradient.sum(0).to(bias.dtype) if bias is not None and wanted[2] else None
        return of_hidden, of_weight, of_bias, None, None, None, None, None

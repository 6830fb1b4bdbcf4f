"""Log-probability and entropy of sampled tokens from their logits, which are the largest array that PPO makes."""

from __future__ import annotations

from typing import Any

import torch

from llmmod.stages.lean.tiles import tiles


def log_probs_of(logits: torch.Tensor, tokens: torch.Tensor, *, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's log-probability, and the entropy of what it was sampled from, both float32 [rows] (float64 of float64).

    Beside the logits themselves only their gradient is ever made.

    Args:
        logits: [rows, vocabulary].
        tokens: int64 [rows].
        temperature: that was sampled with.
    """
    return _LogProbs.apply(logits, tokens, temperature)  # type: ignore[no-untyped-call,no-any-return]


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        sums, entropy = logits.new_empty(len(logits), dtype=dtype), logits.new_empty(len(logits), dtype=dtype)
        for rows in tiles(len(logits)):
            tile = logits[rows].to(dtype) / temperature
            sums[rows] = tile.logsumexp(-1)
            entropy[rows] = sums[rows] - torch.linalg.vecdot((tile - sums[rows, None]).exp_(), tile)
        ctx.save_for_backward(logits, tokens, sums, entropy)
        ctx.temperature = temperature
        return logits.gather(1, tokens[:, None])[:, 0].to(dtype) / temperature - sums, entropy

    @staticmethod
    def backward(ctx: Any, of_log_probs: torch.Tensor, of_entropy: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, tokens, sums, entropy = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in tiles(len(logits)):
            log_p = logits[rows].to(sums.dtype) / ctx.temperature - sums[rows, None]
            p = log_p.exp()
            # d log p(token) / d z = 1[token] - p;  d H / d z = -p (log p + H)
            found = p * (-of_log_probs[rows, None] - of_entropy[rows, None] * (log_p + entropy[rows, None]))
            found.scatter_add_(1, tokens[rows, None], of_log_probs[rows, None])
            gradient[rows] = found / ctx.temperature
        return gradient, None, None

"""PPO's losses, token by token, and what tells whether an update went well (Schulman et al. 2017; Huang et al. 2024).

They aren't averaged here: a mean over each micro-batch would weigh tokens by the company they came in.
"""

from __future__ import annotations

import torch


def policy_losses(
    log_probs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, *, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped surrogate (Schulman et al. 2017, eq. 7, negated) of each token, and whether clipping made it.

    Args:
        log_probs: of the sampled tokens under the policy in training.
        old: under the policy that sampled them.
        advantages: of the same shape.
        cliprange: how far from 1 the ratio of the two may go before a further gain counts for nothing.
    """
    ratio = torch.exp(log_probs - old)
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(free, clipped), clipped > free


def value_losses(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, *, cliprange_value: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error of each value, clipped around the value at the time of the rollout, and whether clipping made it.

    Args:
        values: now.
        old: at the time of the rollout.
        returns: what they should have been.
        cliprange_value: how far a value may move before the worse of the two errors counts; None: as far as it likes.
    """
    free = (values - returns).square()
    if cliprange_value is None:
        return 0.5 * free, torch.zeros_like(free, dtype=torch.bool)
    near = torch.minimum(torch.maximum(values, old - cliprange_value), old + cliprange_value)
    clipped = (near - returns).square()
    return 0.5 * torch.maximum(free, clipped), clipped > free


def approximate_kl(log_probs: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """How far an update has gone from the policy that sampled, token by token: k3, never negative (Schulman 2020)."""
    log_ratio = log_probs - old
    return torch.exp(log_ratio) - 1 - log_ratio


def explained_variance(errors: float, returns: float) -> float:
    """The share of the returns' variance that the values explain: 1 at best, 0 of a constant, below 0 where they mislead.

    Args:
        errors: variance of returns less values.
        returns: variance of returns; 0: there was nothing to explain, and the share is 0.
    """
    return 1 - errors / returns if returns > 0 else 0.0

"""Means and variances of a rollout's real tokens, padding left out; of several processes together where they train together."""

from __future__ import annotations

from collections.abc import Callable

import torch

Reduce = Callable[[torch.Tensor], torch.Tensor]  # the sum of a tensor over all processes
_EPSILON = 1e-8


def alone(value: torch.Tensor) -> torch.Tensor:
    """The sum over all processes where there is one."""
    return value


def masked_moments(values: torch.Tensor, mask: torch.Tensor, reduce: Reduce = alone) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (divided by the number) of the values that `mask` keeps, scalars; 0 and 0 where it keeps none.

    Args:
        values: of any shape.
        mask: bool, of the same shape.
        reduce: adds up over processes.
    """
    count = reduce(mask.sum().to(values)).clamp(min=1)
    mean = reduce(values[mask].sum()) / count
    return mean, reduce((values[mask] - mean).square().sum()) / count


def whitened(values: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True, reduce: Reduce = alone) -> torch.Tensor:
    """The values with mean 0 and variance 1 over the mask, 0 outside it; all 0 where they don't vary.

    Args:
        values: [batch, seq].
        mask: bool [batch, seq].
        shift_mean: false keeps their mean: rewards whose sign means something (Huang et al. 2024, detail 14).
        reduce: adds up over processes.
    """
    mean, variance = masked_moments(values, mask, reduce)
    white = (values - mean) * torch.rsqrt(variance + _EPSILON)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)

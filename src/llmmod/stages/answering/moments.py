"""Mean and spread of numbers that come batch by batch, none of which is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass
class RunningMoments:
    """Mean and variance of all scores so far, batch by batch (Chan et al. 1979: exact, whatever the batches)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    def update(self, scores: torch.Tensor) -> None:
        """Take a batch of scores, of all processes."""
        values = scores.double().flatten()
        count = values.numel()
        if not count:
            return
        mean, delta, total = values.mean().item(), values.mean().item() - self.mean, self.count + count
        self.squares += (values - mean).square().sum().item() + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        """The standard deviation, without bias (divided by the number less one); 0 of fewer than two scores."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """By how much the mean would scatter if as many others of their kind had been scored; 0 of fewer than two scores."""
        return self.std / math.sqrt(self.count) if self.count else 0.0

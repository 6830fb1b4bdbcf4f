"""The order of training examples, of an epoch rather than of the moment it begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler


class ByEpoch(Sampler[int]):
    """A sampler's order drawn from the seed and the epoch's number alone.

    transformers' LengthGroupedSampler (5.23) draws from the random numbers that training itself uses. A run resumed within an epoch would
    then see that epoch in another order: some of its examples twice, others never. accelerate does the same for a RandomSampler.

    Args:
        sampler: has a `generator`, and a length.
        seed: of the order.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self._sampler, self._seed, self._epoch = sampler, seed, 0
        sampler.generator = torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next; accelerate's data loaders call it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator.manual_seed(self._seed + self._epoch)
        return iter(self._sampler)

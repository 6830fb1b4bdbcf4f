"""Which prompts are answered when: each rollout's, as many times in a row as the trainer takes a batch of it.

The Trainer counts the batches of its data loader to know how many optimizer steps an epoch has, when the learning rate is to be where,
and from where a resumed run goes on. So each batch that it takes is the prompts of a whole rollout, and the same for all steps of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler


class RolloutSampler(Sampler[int]):
    """Numbers of examples: a rollout's, repeated, then the next one's, in an order of the epoch's own.

    Where the examples don't fill the last rollout of an epoch, its first ones come again.

    Args:
        examples: how many there are.
        size: of a rollout, all processes together.
        times: each rollout's numbers come so often.
        seed: of the order.
        shuffle: false: the order of the data.
        each: a number comes so often in a row; a group of answers to one prompt.
    """

    def __init__(self, examples: int, *, size: int, times: int, seed: int, shuffle: bool = True, each: int = 1) -> None:
        self._examples, self._size, self._times, self._seed, self._shuffle = examples, size, times, seed, shuffle
        self._each = each
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next; accelerate's data loaders call it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._examples // self._size) * self._size * self._times * self._each

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        for start in range(0, self._examples, self._size):
            numbers = [order[place % self._examples] for place in range(start, start + self._size) for _ in range(self._each)]
            for _ in range(self._times):
                yield from numbers

    def _order(self) -> list[int]:
        if not self._shuffle:
            return list(range(self._examples))
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return torch.randperm(self._examples, generator=generator).tolist()


def columns(examples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A batch of prompts: each column's values, as they are."""
    return {name: [example.get(name) for example in examples] for name in examples[0]}

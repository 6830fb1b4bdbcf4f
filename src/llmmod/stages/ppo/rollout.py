"""A rollout: prompts with sampled answers, and all that an update needs to know of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from llmmod.stages.answering.rows import rows_of


@dataclass
class Rollout:
    """Prompts and answers, on the CPU. Tensors are [answers, tokens of the longest], 0 where a shorter answer has none.

    Args:
        prompts: ids.
        answers: ids.
        mask: which of them are tokens.
        log_probs: of the tokens, when they were sampled.
        values: expected before each token.
        advantages: of the tokens.
        returns: what the values should have been.
    """

    prompts: list[list[int]]
    answers: torch.Tensor
    mask: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    def batch(self, numbers: Sequence[int], *, pad_id: int, left: bool = False) -> dict[str, torch.Tensor]:
        """The answers of these numbers, as the loss takes them."""
        mask = self.mask[numbers]
        width = max(1, int(mask.sum(1).max()))
        batch = rows_of([self.prompts[n] for n in numbers], self.answers[numbers, :width], mask[:, :width], pad_id=pad_id, left=left)
        return batch | {
            "old_log_probs": self.log_probs[numbers, :width],
            "old_values": self.values[numbers, :width],
            "advantages": self.advantages[numbers, :width],
            "returns": self.returns[numbers, :width],
        }

    def tokens(self, numbers: Sequence[int]) -> int:
        """Tokens of these answers."""
        return int(self.mask[numbers].sum())

    def lengths(self) -> list[int]:
        """Tokens of each prompt with its answer."""
        return [len(prompt) + count for prompt, count in zip(self.prompts, self.mask.sum(1).tolist(), strict=True)]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Rollout:
        """The rollout that a checkpoint kept."""
        return cls(**state)


def mini_batch(count: int, *, size: int, number: int, epoch: int, seed: int) -> list[int]:
    """The answers that an optimizer step learns from: the `number`-th part of a pass over the rollout, in an order of the pass's own."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    return order[number * size : (number + 1) * size]


def in_parts(numbers: Sequence[int], size: int, *, by_length: Sequence[int] | None = None) -> Iterator[list[int]]:
    """The numbers, `size` at a time; those of like length together where lengths are given."""
    order = list(numbers) if by_length is None else sorted(numbers, key=lambda number: -by_length[number])
    for start in range(0, len(order), size):
        yield order[start : start + size]

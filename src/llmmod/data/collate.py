"""Examples of different lengths to one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmmod.render.encode import IGNORED


class PadRight:
    """Pads to the longest example of the batch, on the right.

    What is padding, the place says and not the token: where pad and eos are the same token, as in many base models, the real eos keeps
    its label and its attention (TRL issues 1623 and 2059 are about collators that mask it).

    Args:
        tokenizer: whose pad token fills up; eos, or else 0, where it has none.
        pad_to_multiple_of: lengths are rounded up to a multiple of this many tokens; None: they aren't.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None) -> None:
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id: int = next(token for token in ids if token is not None)
        self.multiple = pad_to_multiple_of or 1

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels`, each int64 [batch, longest]."""
        longest = max(len(example["input_ids"]) for example in examples)
        width = -(-longest // self.multiple) * self.multiple
        shape = (len(examples), width)
        batch = {
            "input_ids": torch.full(shape, self.pad_id),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, IGNORED),
        }
        for row, example in enumerate(examples):
            length = len(example["input_ids"])
            batch["input_ids"][row, :length] = torch.as_tensor(example["input_ids"])
            batch["attention_mask"][row, :length] = 1
            batch["labels"][row, :length] = torch.as_tensor(example["labels"])
        return batch

"""Pairs of answers to one batch for a model that scores them, terminators included: behind the prompt that they share, or padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from llmmod.data.collate import PadRight, segments

_ANSWERS = ("chosen_ids", "rejected_ids")
# Of a pair, where its dataset has it: by how much the chosen answer is better, and how much the pair counts.
_OF_PAIR = ("margin", "weight")


class SharePromptScored:
    """Puts a batch of pairs into one row, each prompt once; for models whose attention can branch (`models.segments`).

    A pair is two segments, whose last tokens are scored: the prompt with the chosen answer, and the rejected answer, a branch that sees the
    prompt too.

    Args:
        tokenizer: not needed; every collator is given it.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        pass

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the model takes; it scores pair by pair, the chosen answer and then the rejected one.

        Returns:
            `input_ids`, `position_ids`: int64 [1, tokens]. `cu_seq_lens_q`, `cu_seq_lens_k`, int32 [2 pairs + 1], and `max_length_q`,
            `max_length_k`: as of `models.segments`. `margin` and `weight`, float32 [pairs], where they are known.
        """
        parts = [tuple(example[name] for name in ("prompt_ids", *_ANSWERS)) for example in examples]
        ids = chain.from_iterable(tokens for part in parts for tokens in part)
        lengths = [n for prompt, chosen, rejected in parts for n in (len(prompt) + len(chosen), len(rejected))]
        keys = [n for prompt, chosen, rejected in parts for n in (len(prompt) + len(chosen), len(prompt) + len(rejected))]
        positions = chain.from_iterable(range(seen - own, seen) for own, seen in zip(lengths, keys, strict=True))
        return {
            "input_ids": torch.tensor([list(ids)]),
            "position_ids": torch.tensor([list(positions)]),
            **segments(lengths, keys),
            **_of_pairs(examples),
        }


class PadPairsScored:
    """Pads a batch of pairs, a row an answer with its prompt: what trl.trainer.reward_trainer.DataCollatorForPreference gives.

    Args:
        tokenizer: whose pad token fills up; eos, or else 0, where it has none. What is padding, the mask says.
        pad_to_multiple_of: lengths are rounded up to a multiple of this many tokens; None: they aren't.
        side: where it pads, `right` or `left`.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None, side: str = "right") -> None:
        self._pad, self._left = PadRight(tokenizer, pad_to_multiple_of), side == "left"

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`: int64 [2 pairs, longest], all chosen answers and then all rejected ones.

        Also `margin` and `weight`, float32 [pairs], where they are known.
        """
        rows = [[*example["prompt_ids"], *example[name]] for name in _ANSWERS for example in examples]
        batch = self._pad([{"input_ids": row, "labels": row} for row in rows])
        del batch["labels"]
        if self._left:
            turns = [-len(row) for row in rows]
            batch = {name: torch.stack([*map(torch.roll, values, turns)]) for name, values in batch.items()}
        return {**batch, **_of_pairs(examples)}


def _of_pairs(examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    known = [name for name in _OF_PAIR if name in examples[0]]
    return {name: torch.tensor([example[name] for example in examples], dtype=torch.float32) for name in known}

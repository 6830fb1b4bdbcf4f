"""Pairs of answers to one batch: both behind the prompt that they share, or each with a prompt of its own, padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmmod.data.collate import PadRight, padded_answers, segments
from llmmod.render.encode import IGNORED

_ANSWERS = ("chosen_ids", "rejected_ids")
# Of a pair, how much it counts, there where pairs differ in it, and what the reference model thinks of its answers, where it is known.
_OF_PAIR = ("weight", "ref_chosen_logps", "ref_rejected_logps")


class SharePrompt:
    """Puts a batch of pairs into one row, each prompt once; for models whose attention can branch (`models.segments`).

    A pair is two segments: the prompt with the chosen answer, and the prompt's last token with the rejected one, a branch that sees the
    rest of the prompt too. That token is there twice, since either answer's first token is predicted from it. The last token of an answer
    predicts nothing and is left out.

    Args:
        tokenizer: not needed; every collator is given it.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        pass

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the model takes, and where the answers are in it.

        Returns:
            `input_ids`, `position_ids` and `shift_labels`, int64 [1, tokens]: the label of a position is the token that comes next, and
            positions begin anew with each pair, and at the prompt's end with each rejected answer. `cu_seq_lens_q`, `cu_seq_lens_k`, int32
            [2 pairs + 1], and `max_length_q`, `max_length_k`: as of `models.segments`. `completion_mask`, int64 [2 pairs, 1 + tokens of the
            longest answer]: 1 for each token of an answer, first of all chosen ones and then of all rejected ones; where the labels are in
            the row, it goes pair by pair. Where they are known, `weight`, `ref_chosen_logps` and `ref_rejected_logps`, float32 [pairs].
        """
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        lengths, keys = [], []
        for example in examples:
            prompt, chosen, rejected = example["prompt_ids"], *(example[name] for name in _ANSWERS)
            before = len(prompt) - 1
            ids += [*prompt, *chosen[:-1], prompt[-1], *rejected[:-1]]
            labels += [*[IGNORED] * before, *chosen, *rejected]
            positions += [*range(before + len(chosen)), *range(before, before + len(rejected))]
            lengths += [before + len(chosen), len(rejected)]
            keys += [before + len(chosen), before + len(rejected)]
        return {
            "input_ids": torch.tensor([ids]),
            "position_ids": torch.tensor([positions]),
            "shift_labels": torch.tensor([labels]),
            **segments(lengths, keys),
            "completion_mask": _answers_alone([len(example[name]) for name in _ANSWERS for example in examples]),
            **_of_pairs(examples),
        }


class PadPairs:
    """Pads a batch of pairs on the right, a row an answer with its prompt: what trl.trainer.dpo_trainer.DataCollatorForPreference gives.

    Args:
        tokenizer, pad_to_multiple_of: as of PadRight.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None) -> None:
        self._pad = PadRight(tokenizer, pad_to_multiple_of)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `attention_mask` and `completion_mask` (1 for an answer's tokens), each int64 [2 pairs, longest].

        First all chosen answers, then all rejected ones. Where they are known, also `weight`, `ref_chosen_logps` and `ref_rejected_logps`,
        float32 [pairs].
        """
        prompts = [example["prompt_ids"] for example in examples] * len(_ANSWERS)
        answers = [example[name] for name in _ANSWERS for example in examples]
        return padded_answers(self._pad, prompts, answers) | _of_pairs(examples)


def _answers_alone(lengths: Sequence[int]) -> torch.Tensor:
    """1 where an answer has a token, from the second column on: the first stands for the prompt."""
    places = torch.arange(1 + max(lengths))
    return ((places > 0) & (places <= torch.tensor(lengths)[:, None])).long()


def _of_pairs(examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([example[name] for example in examples]) for name in _OF_PAIR if name in examples[0]}

"""Pairs of answers to one batch: both behind the prompt that they share, or each with a prompt of its own, padded.

Pairs of answers to one batch for a model that scores them, terminators included: behind the prompt that they share, or padded.

Judged answers to one batch: each behind its prompt, and once more behind another's prompt, which kto's estimate of the KL takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from llmmod.data.collators import PaddingCollator, padded_answers, segments
from llmmod.render.encode import IGNORED

_ANSWERS = ("chosen_ids", "rejected_ids")
# Of a pair, how much it counts, there where pairs differ in it, and what the reference model thinks of its answers, where it is known.
_OF_PAIR = ("weight", "ref_chosen_logps", "ref_rejected_logps")


class PrefixSharingCollator:
    """Puts a batch of pairs into one row, each prompt once; for models whose attention can branch (`attention.varlen`).

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
            [2 pairs + 1], and `max_length_q`, `max_length_k`: as in `varlen`. `completion_mask`, int64 [2 pairs, 1 + tokens of the
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


class PreferenceCollator:
    """Pads a batch of pairs on the right, a row an answer with its prompt: what trl.trainer.dpo_trainer.DataCollatorForPreference gives.

    Args:
        tokenizer, pad_to_multiple_of: as of PaddingCollator.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None) -> None:
        self._pad = PaddingCollator(tokenizer, pad_to_multiple_of)

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


# Of a pair, where its dataset has it: by how much the chosen answer is better, and how much the pair counts.
_OF_PAIR_of_scored_pairs = ("margin", "weight")


class PrefixSharingRewardCollator:
    """Puts a batch of pairs into one row, each prompt once; for models whose attention can branch (`attention.varlen`).

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
            `max_length_k`: as in `attention.varlen`. `margin` and `weight`, float32 [pairs], where they are known.
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
            **_of_pairs_of_scored_pairs(examples),
        }


class RewardCollator:
    """Pads a batch of pairs, a row an answer with its prompt: what trl.trainer.reward_trainer.DataCollatorForPreference gives.

    Args:
        tokenizer: whose pad token fills up; eos, or else 0, where it has none. What is padding, the mask says.
        pad_to_multiple_of: lengths are rounded up to a multiple of this many tokens; None: they aren't.
        side: where it pads, `right` or `left`.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None, side: str = "right") -> None:
        self._pad, self._left = PaddingCollator(tokenizer, pad_to_multiple_of), side == "left"

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
        return {**batch, **_of_pairs_of_scored_pairs(examples)}


def _of_pairs_of_scored_pairs(examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    known = [name for name in _OF_PAIR_of_scored_pairs if name in examples[0]]
    return {name: torch.tensor([example[name] for example in examples], dtype=torch.float32) for name in known}


class KTOCollator:
    """Pads a batch of judged answers on the right; mismatched pairs are made as trl (1.16) makes them, each answer with the next prompt.

    trl pairs examples before training and so needs them in a fixed order; pairs made within the batch allow any order.

    Args:
        tokenizer, pad_to_multiple_of: as of PaddingCollator.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None) -> None:
        self._pad = PaddingCollator(tokenizer, pad_to_multiple_of)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `attention_mask` and `completion_mask` (1 for an answer's tokens), each int64 [examples, longest].

        The same three of the mismatched pairs, their names after `KL_`; `label`, bool [examples]; and where they are known, `ref_logps` and
        `weight`, float32 [examples].
        """
        prompts, answers = ([example[name] for example in examples] for name in ("prompt_ids", "completion_ids"))
        batch: dict[str, Any] = padded_answers(self._pad, prompts, answers)
        mismatched = padded_answers(self._pad, prompts, [answers[-1], *answers[:-1]])
        batch |= {f"KL_{name}": values for name, values in mismatched.items()}
        batch["label"] = torch.tensor([bool(example["label"]) for example in examples])
        known = [name for name in ("ref_logps", "weight") if name in examples[0]]
        return batch | {name: torch.tensor([example[name] for example in examples]) for name in known}

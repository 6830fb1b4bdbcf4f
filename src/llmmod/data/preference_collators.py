"""Collators for prompts with answers: pairs for dpo, pairs for a reward model, single judged answers for kto.

A pair is two padded rows, each with the prompt and an answer; or it shares its prompt in one row, for models whose attention can branch
(`attention.varlen`). dpo needs the log-probability of each answer's tokens, a reward model scores the last token of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmmod.data.collators import PaddingCollator, segment_boundaries
from llmmod.render.encode import IGNORED

_ANSWERS = ("chosen_ids", "rejected_ids")
# Columns of numbers that an example may have, passed on as float32 [examples]: its weight; by how much the chosen answer is better;
# and the reference model's log-probabilities of its answers.
_DPO_NUMBERS = ("weight", "ref_chosen_logps", "ref_rejected_logps")
_REWARD_NUMBERS = ("margin", "weight")
_KTO_NUMBERS = ("weight", "ref_logps")


def _numbers(examples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, torch.Tensor]:
    known = [name for name in names if name in examples[0]]
    return {name: torch.tensor([example[name] for example in examples], dtype=torch.float32) for name in known}


class PreferenceCollator:
    """Pads a batch of pairs on the right, a row for each answer with its prompt, like trl.trainer.dpo_trainer.DataCollatorForPreference.

    Args:
        tokenizer, pad_to_multiple_of: as in PaddingCollator.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None) -> None:
        self._pad = PaddingCollator(tokenizer, pad_to_multiple_of)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `attention_mask` and `completion_mask` (1 for an answer's tokens), each int64 [2 pairs, longest].

        First all chosen answers, then all rejected ones. If the examples have them, also `weight`, `ref_chosen_logps` and
        `ref_rejected_logps`, float32 [pairs].
        """
        prompts = [example["prompt_ids"] for example in examples] * len(_ANSWERS)
        answers = [example[name] for name in _ANSWERS for example in examples]
        return self._pad.with_prompts(prompts, answers) | _numbers(examples, _DPO_NUMBERS)


class PrefixSharingCollator:
    """Puts a batch of pairs into one row, each prompt once.

    A pair is two segments: the prompt with the chosen answer, and the prompt's last token with the rejected one, a branch that attends to
    the rest of the prompt too. That token occurs twice, since the first token of either answer is predicted from it. The last token of an
    answer doesn't predict another, so it is left out.

    Args:
        tokenizer: not needed; every collator is given it.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        pass

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The model's input, and the places of the answers in it.

        Returns:
            `input_ids`, `position_ids` and `shift_labels`, int64 [1, tokens]: the label of a position is the next token; positions restart
            with each pair, and at the prompt's end with each rejected answer. The boundaries of `segment_boundaries`, with 2 segments for
            each pair. `completion_mask`, int64 [2 pairs, 1 + tokens of the longest answer]: 1 for each token of an answer, from the second
            column on, since the first is for the prompt; its order is pair by pair, as in the labels. If the examples have them, `weight`,
            `ref_chosen_logps` and `ref_rejected_logps`, float32 [pairs].
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
        tokens = torch.tensor([len(example[name]) for name in _ANSWERS for example in examples])
        places = torch.arange(1 + int(tokens.max()))
        return {
            "input_ids": torch.tensor([ids]),
            "position_ids": torch.tensor([positions]),
            "shift_labels": torch.tensor([labels]),
            **segment_boundaries(lengths, keys),
            "completion_mask": ((places > 0) & (places <= tokens[:, None])).long(),
            **_numbers(examples, _DPO_NUMBERS),
        }


class RewardCollator:
    """Pads a batch of pairs, a row for each answer with its prompt, like trl.trainer.reward_trainer.DataCollatorForPreference.

    Args:
        tokenizer, pad_to_multiple_of: as in PaddingCollator.
        side: of the padding, `right` or `left`.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None, side: str = "right") -> None:
        self._pad, self._left = PaddingCollator(tokenizer, pad_to_multiple_of), side == "left"

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`: int64 [2 pairs, longest], all chosen answers and then all rejected ones.

        If the examples have them, also `margin` and `weight`, float32 [pairs].
        """
        rows = [[*example["prompt_ids"], *example[name]] for name in _ANSWERS for example in examples]
        batch = self._pad([{"input_ids": row, "labels": row} for row in rows])
        del batch["labels"]
        if self._left:
            turns = [-len(row) for row in rows]
            batch = {name: torch.stack([*map(torch.roll, values, turns)]) for name, values in batch.items()}
        return {**batch, **_numbers(examples, _REWARD_NUMBERS)}


class PrefixSharingRewardCollator:
    """Puts a batch of pairs into one row, each prompt once.

    A pair is two segments, whose last tokens are scored: the prompt with the chosen answer, and the rejected answer, a branch that attends
    to the prompt too.

    Args:
        tokenizer: not needed; every collator is given it.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        pass

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The model's input; scores are pair by pair, the chosen answer and then the rejected one.

        Returns:
            `input_ids`, `position_ids`: int64 [1, tokens]. The boundaries of `segment_boundaries`, with 2 segments for each pair. If the
            examples have them, `margin` and `weight`, float32 [pairs].
        """
        ids: list[int] = []
        positions: list[int] = []
        lengths, keys = [], []
        for example in examples:
            prompt, chosen, rejected = example["prompt_ids"], *(example[name] for name in _ANSWERS)
            first, second = len(prompt) + len(chosen), len(prompt) + len(rejected)
            ids += [*prompt, *chosen, *rejected]
            positions += [*range(first), *range(len(prompt), second)]
            lengths += [first, len(rejected)]
            keys += [first, second]
        return {
            "input_ids": torch.tensor([ids]),
            "position_ids": torch.tensor([positions]),
            **segment_boundaries(lengths, keys),
            **_numbers(examples, _REWARD_NUMBERS),
        }


class KTOCollator:
    """Pads a batch of judged answers on the right; makes mismatched pairs like trl (1.16), each answer with the next prompt.

    trl pairs examples before training, so it needs them in a fixed order; pairs made within the batch allow any order.

    Args:
        tokenizer, pad_to_multiple_of: as in PaddingCollator.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None) -> None:
        self._pad = PaddingCollator(tokenizer, pad_to_multiple_of)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `attention_mask` and `completion_mask` (1 for an answer's tokens), each int64 [examples, longest].

        The same three for the mismatched pairs, with the prefix `KL_`; `label`, bool [examples]; and if the examples have them, `ref_logps`
        and `weight`, float32 [examples].
        """
        prompts, answers = ([example[name] for example in examples] for name in ("prompt_ids", "completion_ids"))
        batch: dict[str, Any] = self._pad.with_prompts(prompts, answers)
        mismatched = self._pad.with_prompts(prompts, [answers[-1], *answers[:-1]])
        batch |= {f"KL_{name}": values for name, values in mismatched.items()}
        batch["label"] = torch.tensor([bool(example["label"]) for example in examples])
        return batch | _numbers(examples, _KTO_NUMBERS)

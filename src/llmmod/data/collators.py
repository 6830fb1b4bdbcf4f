"""Collators make a batch of examples: texts, pairs of answers (dpo, rm) or judged answers (kto), in one row or padded to one length.

A pair is two padded rows, each with the prompt and an answer; or it shares its prompt in one row, for models whose attention can branch
(`attention.varlen`). dpo needs the log-probability of each answer's tokens, a reward model scores the last token of each.

The mask marks padding, not the token: if pad and eos are the same token, as in many base models, the real eos keeps its label and its
attention (TRL issues 1623 and 2059 are about collators that mask it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import pad

from llmmod.render.encode import IGNORED

_BOUNDARIES = 64  # the number of boundaries in a row of fixed length is a multiple of this
_ANSWERS = ("chosen_ids", "rejected_ids")
# Columns of numbers that an example may have, passed on as float32 [examples]: its weight; by how much the chosen answer is better;
# and the reference model's log-probabilities of its answers.
_DPO_NUMBERS = ("weight", "ref_chosen_logps", "ref_rejected_logps")
_REWARD_NUMBERS = ("margin", "weight")
_KTO_NUMBERS = ("weight", "ref_logps")


class FlatteningCollator:
    """Puts all examples of a batch into one row, without padding; for models that keep them apart (`attention.varlen`).

    An example may be a packed row: its `seq_lengths` are the lengths of its examples, in tokens.

    Args:
        tokenizer: not used; every collator gets it.
        length: tokens of a batch of packed rows. torch.compile compiles again for every shape, so each row is filled with an example of
            padding, and with empty examples up to a fixed number of boundaries. None: as many tokens as the examples have.
    """

    def __init__(self, tokenizer: Any = None, length: int | None = None) -> None:
        self.length = length

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `labels` and `position_ids`, int64 [1, tokens], and the boundaries of the examples.

        Returns:
            `position_ids` restart with each example. The boundaries are those of `segment_boundaries`, one more than examples. An
            `attention_mask` is left out: a mask of ones would turn off transformers' own detection of such rows. The first token of an
            example doesn't have a label, since it doesn't have a token of the same example before it.
        """
        lengths = [length for example in examples for length in example.get("seq_lengths") or [len(example["input_ids"])]]
        ids, labels = (
            torch.tensor(list(chain.from_iterable(example[name] for example in examples)), dtype=torch.int64)
            for name in ("input_ids", "labels")
        )
        labels[[0, *accumulate(lengths)][:-1]] = IGNORED
        extra: dict[str, Any] = {}
        if self.length is not None and "seq_lengths" in examples[0]:
            padding = self.length - len(ids)
            ids, labels = pad(ids, (0, padding), value=0), pad(labels, (0, padding), value=IGNORED)
            count = -(-(len(lengths) + 2) // _BOUNDARIES) * _BOUNDARIES - 1
            lengths = [*lengths, padding, *[0] * (count - len(lengths) - 1)]
            extra = {"max_length_q": self.length, "max_length_k": self.length}
        positions = torch.cat([torch.arange(length) for length in lengths])
        return {"input_ids": ids[None], "labels": labels[None], "position_ids": positions[None], **segment_boundaries(lengths), **extra}


def segment_boundaries(lengths: Sequence[int], keys: Sequence[int] | None = None) -> dict[str, Any]:
    """The boundaries of a row's segments, named as in transformers' attention functions.

    Args:
        lengths: tokens of each segment.
        keys: tokens that each segment attends to; None: its own.

    Returns:
        `cu_seq_lens_q`, `cu_seq_lens_k`, int32 [segments + 1]; `max_length_q`, `max_length_k`, the largest of each. `segment_lengths` has
        `lengths` and `keys` again, as lists: the tensors are moved to an accelerator, and reading them there would stall it in each layer.
        Its `masks` are empty; the attention stores masks there that the layers share.
    """
    boundaries = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return {
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries if keys is None else torch.tensor([0, *accumulate(keys)], dtype=torch.int32),
        "max_length_q": max(lengths),
        "max_length_k": max(lengths if keys is None else keys),
        "segment_lengths": SimpleNamespace(lengths=[*lengths], keys=[*(lengths if keys is None else keys)], masks={}),
    }


class PaddingCollator:
    """Pads to the longest example of a batch, on the right.

    Args:
        tokenizer: its pad token is the padding; without one, eos, or else 0.
        pad_to_multiple_of: lengths are rounded up to a multiple of this number of tokens; None: they aren't.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None) -> None:
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id: int = next(token for token in ids if token is not None)
        self.multiple = pad_to_multiple_of or 1

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels`, each int64 [batch, longest]."""
        longest = max(len(example["input_ids"]) for example in examples)
        width = -(-longest // self.multiple) * self.multiple
        ids, mask = padded([example["input_ids"] for example in examples], fill=self.pad_id, width=width)
        labels, _ = padded([example["labels"] for example in examples], fill=IGNORED, width=width)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def with_prompts(self, prompts: Iterable[Sequence[int]], answers: Iterable[Sequence[int]]) -> dict[str, torch.Tensor]:
        """A batch of answers, each after its prompt.

        Args:
            prompts: ids, one for each answer.
            answers: ids.

        Returns:
            `input_ids`, `attention_mask` and `completion_mask` (1 for an answer's tokens), int64 [answers, longest].
        """
        both = zip(prompts, answers, strict=True)
        batch = self([{"input_ids": [*prompt, *answer], "labels": [*[IGNORED] * len(prompt), *answer]} for prompt, answer in both])
        labels = batch.pop("labels")
        return {**batch, "completion_mask": (labels != IGNORED).long()}


def padded(rows: Sequence[Sequence[int]], *, fill: int, width: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows padded on the right, and a mask with 1 for their own values; each int64 [rows, width].

    Args:
        rows: ids or labels.
        fill: the padding.
        width: at least the length of the longest row; None: that length.
    """
    width = max(map(len, rows)) if width is None else width
    values = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.int64)
    return values, (torch.arange(width) < torch.tensor([[len(row)] for row in rows])).long()


def _numbers(examples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([example[name] for example in examples], dtype=torch.float32) for name in names if name in examples[0]}


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

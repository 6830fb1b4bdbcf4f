"""Example types of prompts whose answers are generated (ppo, grpo), compared (rm, dpo) or judged (kto).

The ids of the prompt and of each answer are separate columns. A row with ranked answers makes several examples. Ouyang et al. 2022, section
3.5, train a reward model on every pair of a prompt, in one batch; here each pair is an example, with a weight so that each prompt counts
like one with a single pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]

from llmmod.config.schema.base import CutoffPolicy, Ranked
from llmmod.data.examples.types import IDS, Fitted, RowPerExample, Texts
from llmmod.data.rows.records import PromptRecord, RowError
from llmmod.render.encode import Encoded

WEIGHT = "weight"  # the column with an example's weight
_LABEL = "label"
_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
_ARROW = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


class TokenizedPrompt(NamedTuple):
    """A prompt and its answers as tokens; the prompt with each answer has the same tokens as in supervised fine-tuning."""

    prompt: list[int]
    answers: list[list[int]]  # each with its terminator

    def cut(self, limit: int, policy: CutoffPolicy) -> TokenizedPrompt | None:
        """The same with at most `limit` tokens for each answer: cuts the beginning of the prompt (left), or the end of the answers (right).

        With `left`, answers that don't leave room for the prompt lose their ends too. None if an answer or the prompt would be empty.
        """
        prompt, answers = self
        if policy == CutoffPolicy.left:
            kept = max(1, limit - max(map(len, answers), default=0))
            prompt = prompt[-min(kept, limit) :]
        room = limit - len(prompt)
        if room < 0 or (answers and room == 0):
            return None
        return TokenizedPrompt(prompt, [answer[:room] for answer in answers])


@dataclass(frozen=True)
class Prompts(RowPerExample):
    """Prompts with answers to them.

    Args:
        answers: the columns of the answers.
        values: other columns -> their Arrow types.
        messages: whether a column `prompt` has the messages.
        plural: the name of several examples of one record.
    """

    answers: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    messages: bool = False
    plural: str = "examples"

    @classmethod
    def to_answer(cls, types: Mapping[str, type]) -> Prompts:
        """Prompts without an answer, with `answer` and other columns as values.

        Args:
            types: column besides `answer` -> str, bool, int or float.
        """
        return cls((), {"answer": pa.string(), **{name: _ARROW[kind] for name, kind in types.items()}}, messages=True)

    @property
    def schema(self) -> Any:
        """`prompt_ids`, the answers' ids, and the values."""
        ids = dict.fromkeys(("prompt_ids", *self.answers), IDS)
        return pa.schema(ids | ({"prompt": _MESSAGES} if self.messages else {}) | dict(self.values))

    def segments(self, record: PromptRecord, render: Any, *, mask_prompt: bool) -> list[Texts]:
        """The prompt as for inference, and the prompt with each answer as for training."""
        return [[render.prompt(record.prompt), *(render.examples(one)[-1] for one in record.answered())]]

    def assemble(self, encoded: Sequence[Encoded]) -> TokenizedPrompt:
        """The prompt's ids, and the ids after them for each answer; for a truncated one, up to the cut."""
        prompt, whole = encoded[0].input_ids, [example.input_ids[: example.end] for example in encoded[1:]]
        if any(ids[: len(prompt)] != prompt for ids in whole):
            found = "the render writes another prompt in training than for inference"
            raise RowError(found, do="Choose another render, or leave such rows out")
        return TokenizedPrompt(prompt, [ids[len(prompt) :] for ids in whole])

    def select(self, record: PromptRecord, index: int) -> PromptRecord:
        """The record itself, since it makes one example."""
        return record

    def length(self, tokens: TokenizedPrompt) -> int:
        """Tokens of the prompt with the longest answer."""
        return len(tokens.prompt) + max(map(len, tokens.answers), default=0)

    def cut(self, tokens: TokenizedPrompt, limit: int, policy: CutoffPolicy) -> Fitted | int:
        """All answers after the same prompt."""
        kept = tokens.cut(limit, policy)
        if kept is None:
            return len(tokens.prompt) + bool(tokens.answers)
        return Fitted(kept, any(len(one) < len(other) for one, other in zip(kept.answers, tokens.answers, strict=True)))

    def count(self, tokens: TokenizedPrompt) -> tuple[int, int]:
        """Tokens of the prompt and the answers, and tokens of the answers."""
        trained = sum(map(len, tokens.answers))
        return len(tokens.prompt) + trained, trained

    def row(self, record: PromptRecord, tokens: TokenizedPrompt, *, number: int = 0, of: int = 1) -> dict[str, Any]:
        """`prompt_ids`, the answers' ids, and the values, None for missing ones."""
        ids = {"prompt_ids": tokens.prompt, **dict(zip(self.answers, tokens.answers, strict=True))}
        messages = {"prompt": [{"role": m.role, "content": m.text} for m in record.prompt.messages]} if self.messages else {}
        return ids | messages | {name: record.values.get(name) for name in self.values}


def ranked_pairs(count: int, which: Ranked) -> list[tuple[int, int]]:
    """The pairs of ranked answers, each as the places of the better and the worse one.

    Args:
        count: answers, at least two.
        which: `dataset.ranked`.
    """
    if which == Ranked.adjacent:
        return list(pairwise(range(count)))
    if which == Ranked.ends:
        return [(0, count - 1)]
    if which == Ranked.first_two:
        return [(0, 1)]
    return list(combinations(range(count), 2))


def ranked_labels(count: int, which: Ranked) -> list[tuple[int, bool]]:
    """The answers with a label, by place: true if it wins more of its pairs than it loses, false if it loses more.

    An answer with as many wins as losses is left out: the middle one of an odd number with `all`, all but the ends with `adjacent`.
    """
    wins = dict.fromkeys(range(count), 0)
    for better, worse in ranked_pairs(count, which):
        wins[better] += 1
        wins[worse] -= 1
    return [(place, balance > 0) for place, balance in wins.items() if balance]


@dataclass(frozen=True)
class Preferences(Prompts):
    """Pairs of the better and the worse answer; a row with more than two answers makes several pairs.

    Args:
        ranked: which pairs.
        weighs: whether there is a column with a pair's weight: 1 divided by the number of its row's pairs.
    """

    ranked: Ranked = Ranked.all
    weighs: bool = False

    @classmethod
    def of(cls, ranked: Ranked, *, weighs: bool) -> Preferences:
        """The type with the columns `chosen_ids` and `rejected_ids`, and the weight if `weighs`."""
        return cls(("chosen_ids", "rejected_ids"), _weight(weighs), plural="pairs", ranked=ranked, weighs=weighs)

    def segments(self, record: PromptRecord, render: Any, *, mask_prompt: bool) -> list[Texts]:
        """The prompt with both answers of each pair."""
        (prompt, *answers), *_ = super().segments(record, render, mask_prompt=mask_prompt)
        return [[prompt, answers[better], answers[worse]] for better, worse in ranked_pairs(len(answers), self.ranked)]

    def select(self, record: PromptRecord, index: int) -> PromptRecord:
        """The record with the two answers of a pair."""
        return replace(record, answers=[record.answers[at] for at in ranked_pairs(len(record.answers), self.ranked)[index]])

    def row(self, record: PromptRecord, tokens: TokenizedPrompt, *, number: int = 0, of: int = 1) -> dict[str, Any]:
        """The ids, and the weight if `weighs`."""
        return super().row(record, tokens) | ({WEIGHT: 1 / of} if self.weighs else {})


@dataclass(frozen=True)
class Judgements(Prompts):
    """Judged answers: by the row's label, or if its answers are ranked, by `ranked_labels`.

    Args:
        ranked: the pairs that turn ranks into labels.
        weighs: whether there is a column with an answer's weight: the answers of a row with ranks count like two.
    """

    ranked: Ranked = Ranked.all
    weighs: bool = False

    @classmethod
    def of(cls, ranked: Ranked, *, weighs: bool) -> Judgements:
        """The type with the columns `completion_ids` and `label`, and the weight if `weighs`."""
        values = {_LABEL: pa.bool_(), **_weight(weighs)}
        return cls(("completion_ids",), values, plural="judged answers", ranked=ranked, weighs=weighs)

    def segments(self, record: PromptRecord, render: Any, *, mask_prompt: bool) -> list[Texts]:
        """The prompt with each judged answer."""
        (prompt, *answers), *_ = super().segments(record, render, mask_prompt=mask_prompt)
        return [[prompt, answers[place]] for place, _ in self._labels(record)]

    def select(self, record: PromptRecord, index: int) -> PromptRecord:
        """The record with one of its answers and its label."""
        place, label = self._labels(record)[index]
        return replace(record, answers=[record.answers[place]], values={**record.values, _LABEL: label})

    def row(self, record: PromptRecord, tokens: TokenizedPrompt, *, number: int = 0, of: int = 1) -> dict[str, Any]:
        """The ids, the label, and the weight if `weighs`."""
        label = {_LABEL: self._labels(record)[number][1]}
        return super().row(record, tokens) | label | ({WEIGHT: min(1.0, 2 / of)} if self.weighs else {})

    def _labels(self, record: PromptRecord) -> list[tuple[int, bool]]:
        given = record.values.get(_LABEL)
        return ranked_labels(len(record.answers), self.ranked) if given is None else [(0, bool(given))]


def _weight(weighs: bool) -> dict[str, Any]:
    return {WEIGHT: pa.float32()} if weighs else {}

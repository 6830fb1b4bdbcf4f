"""The forms of answers that are compared and of answers that are judged: several examples of a row where its answers are ranked.

Ouyang et al. 2022, section 3.5, train a reward model on every pair of a prompt, in one batch. Here pairs are examples of their own, and a
weight lets each prompt count as much as one with a single pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from llmmod.config.schema.base import Ranked
from llmmod.data.examples.types import Prompts, Texts
from llmmod.data.rows.records import PromptRecord

WEIGHT = "weight"  # the column that says how much an example counts beside the others
_LABEL = "label"


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
    """The answers that the pairs judge, as place and label: good where they win more of their pairs than they lose, else bad.

    One that wins as many as it loses is left out: the middle one of an odd number with `all`, all but the ends with `adjacent`.
    """
    wins = dict.fromkeys(range(count), 0)
    for better, worse in ranked_pairs(count, which):
        wins[better] += 1
        wins[worse] -= 1
    return [(place, balance > 0) for place, balance in wins.items() if balance]


@dataclass(frozen=True)
class Preferences(Prompts):
    """Pairs: the better and the worse answer; a row with more than two answers makes several pairs.

    Args:
        ranked: which pairs.
        weighs: whether a column says how much a pair counts: 1 by the pairs of its row.
    """

    ranked: Ranked = Ranked.all
    weighs: bool = False

    def segments(self, record: PromptRecord, render: Any, *, mask_prompt: bool) -> list[Texts]:
        """The prompt with both answers of each pair."""
        (prompt, *answers), *_ = super().segments(record, render, mask_prompt=mask_prompt)
        return [[prompt, answers[better], answers[worse]] for better, worse in ranked_pairs(len(answers), self.ranked)]

    def select(self, record: PromptRecord, index: int) -> PromptRecord:
        """The record with the two answers of a pair."""
        return replace(record, answers=[record.answers[at] for at in ranked_pairs(len(record.answers), self.ranked)[index]])

    def row(self, record: PromptRecord, tokens: Any, *, number: int = 0, of: int = 1) -> dict[str, Any]:
        """The ids, and the weight where there is one."""
        return super().row(record, tokens) | ({WEIGHT: 1 / of} if self.weighs else {})


@dataclass(frozen=True)
class Judgements(Prompts):
    """Answers that are judged: by the row's label, or, where its answers are ranked, by `ranked_labels`.

    Args:
        ranked: by which pairs ranks become labels.
        weighs: whether a column says how much an answer counts: those of a row with ranked answers as much as two.
    """

    ranked: Ranked = Ranked.all
    weighs: bool = False

    def segments(self, record: PromptRecord, render: Any, *, mask_prompt: bool) -> list[Texts]:
        """The prompt with each judged answer."""
        (prompt, *answers), *_ = super().segments(record, render, mask_prompt=mask_prompt)
        return [[prompt, answers[place]] for place, _ in self._labels(record)]

    def select(self, record: PromptRecord, index: int) -> PromptRecord:
        """The record with one of its answers, which has a label."""
        place, label = self._labels(record)[index]
        return replace(record, answers=[record.answers[place]], values={**record.values, _LABEL: label})

    def row(self, record: PromptRecord, tokens: Any, *, number: int = 0, of: int = 1) -> dict[str, Any]:
        """The ids, the label, and the weight where there is one."""
        label = {_LABEL: self._labels(record)[number][1]}
        return super().row(record, tokens) | label | ({WEIGHT: min(1.0, 2 / of)} if self.weighs else {})

    def _labels(self, record: PromptRecord) -> list[tuple[int, bool]]:
        given = record.values.get(_LABEL)
        return ranked_labels(len(record.answers), self.ranked) if given is None else [(0, bool(given))]


def compared(ranked: Ranked, *, weighs: bool) -> Preferences:
    """The form of preferences."""
    return Preferences(("chosen_ids", "rejected_ids"), _weight(weighs), made="pairs", ranked=ranked, weighs=weighs)


def judged(ranked: Ranked, *, weighs: bool) -> Judgements:
    """The form of judgements."""
    values = {_LABEL: pa.bool_(), **_weight(weighs)}
    return Judgements(("completion_ids",), values, made="judged answers", ranked=ranked, weighs=weighs)


def _weight(weighs: bool) -> dict[str, Any]:
    return {WEIGHT: pa.float32()} if weighs else {}

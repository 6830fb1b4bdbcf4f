"""How much of the row's own answer an answer has: a reward that needs no reward model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from llmmod.metrics.words import words


def overlap(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float]:
    """F1 of the words of each completion and of the answer its row has, 0 to 1; 0 where the row has none.

    Args:
        completions: texts, or conversations whose last message has the text.
        answer: the column of that name.
        columns: what else a reward function is given.
    """
    return [_f1(Counter(words(_text(completion))), Counter(words(wanted))) for completion, wanted in zip(completions, answer, strict=True)]


def _f1(found: Counter[str], wanted: Counter[str]) -> float:
    total = found.total() + wanted.total()
    return 2 * (found & wanted).total() / total if total else 0.0


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])

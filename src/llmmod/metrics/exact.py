"""Exact answers: those that say word for word what the data says (SQuAD's exact match, Rajpurkar et al. 2016, in any language)."""

from __future__ import annotations

from llmmod.metrics.words import words


class Exact:
    """The share of answers, in percent, whose words are those of the data's answer; case, punctuation and white space don't count."""

    def __init__(self) -> None:
        self._exact = self._answers = 0

    def update(self, predict: str, label: str) -> None:
        """Count one answer, `predict`, against what the data says, `label`."""
        self._exact += words(predict) == words(label)
        self._answers += 1

    def compute(self) -> dict[str, float]:
        """`exact` from 0 to 100; nothing where no answer was counted."""
        return {"exact": 100 * self._exact / self._answers} if self._answers else {}

"""Exact answers: those with the same words as the data's answer (SQuAD's exact match, Rajpurkar et al. 2016, in any language)."""

from __future__ import annotations

from llmmod.metrics.words import words


class Exact:
    """The percentage of answers with the same words as the data's answer; case, punctuation and white space are ignored."""

    def __init__(self) -> None:
        self._exact = self._answers = 0

    def update(self, predict: str, label: str) -> None:
        """Count one answer, `predict`, against the data's answer, `label`."""
        self._exact += words(predict) == words(label)
        self._answers += 1

    def compute(self) -> dict[str, float]:
        """`exact` from 0 to 100; empty without answers."""
        return {"exact": 100 * self._exact / self._answers} if self._answers else {}

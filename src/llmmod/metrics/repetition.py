"""The repetition in an answer: policies start to repeat a text to which the reward model gives high scores."""

from __future__ import annotations

from typing import ClassVar

from llmmod.metrics.words import words

_SIZE = 4  # words of an n-gram


class Repetition:
    """The percentage of an answer's 4-grams that occur earlier in it, averaged over answers (seq-rep-4, Welleck et al. 2020).

    For an answer of fewer than four words it is 0.
    """

    needs_label: ClassVar[bool] = False

    def __init__(self) -> None:
        self._shares = 0.0
        self._answers = 0

    def update(self, predict: str, label: str) -> None:
        """Count the n-grams of one answer, `predict`."""
        said = words(predict)
        grams = [tuple(said[at : at + _SIZE]) for at in range(len(said) - _SIZE + 1)]
        self._shares += 1 - len(set(grams)) / len(grams) if grams else 0.0
        self._answers += 1

    def compute(self) -> dict[str, float]:
        """`repeated-4-grams` from 0 to 100; empty without answers."""
        return {"repeated-4-grams": 100 * self._shares / self._answers} if self._answers else {}

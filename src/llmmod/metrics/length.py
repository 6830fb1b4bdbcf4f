"""The length of answers: it changes with a reward that prefers longer or shorter ones."""

from __future__ import annotations

from typing import ClassVar

from llmmod.metrics.words import words


class Length:
    """The mean number of words of an answer."""

    needs_label: ClassVar[bool] = False

    def __init__(self) -> None:
        self._words = self._answers = 0

    def update(self, predict: str, label: str) -> None:
        """Count the words of one answer, `predict`."""
        self._words += len(words(predict))
        self._answers += 1

    def compute(self) -> dict[str, float]:
        """`words`; empty without answers."""
        return {"words": self._words / self._answers} if self._answers else {}

"""ROUGE-1, ROUGE-2 and ROUGE-L of answers (Lin 2004), by the library rouge_score."""

from __future__ import annotations

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from llmmod.metrics.words import words

_KINDS = {"rouge1": "rouge-1", "rouge2": "rouge-2", "rougeL": "rouge-l"}  # the library's names -> ours


class Words(Tokenizer):
    """A tokenizer for rouge_score that also works for other languages than English."""

    def tokenize(self, text: str) -> list[str]:
        """See `llmmod.metrics.words.words`."""
        return words(text)


class Rouge:
    """F1 of each kind, in percent, averaged over answers; an answer without words counts 0.

    It stores three sums and a count, for any number of answers. Without stemming; ROUGE-L treats an answer as one sentence.
    """

    def __init__(self) -> None:
        self._scorer = RougeScorer(list(_KINDS), tokenizer=Words())
        self._sums = dict.fromkeys(_KINDS, 0.0)
        self._answers = 0

    def update(self, predict: str, label: str) -> None:
        """Count one answer, `predict`, against the data's answer, `label`."""
        for kind, score in self._scorer.score(target=label, prediction=predict).items():
            self._sums[kind] += score.fmeasure
        self._answers += 1

    def compute(self) -> dict[str, float]:
        """`rouge-1`, `rouge-2` and `rouge-l`, each from 0 to 100; empty without answers."""
        if not self._answers:
            return {}
        return {name: 100 * self._sums[kind] / self._answers for kind, name in _KINDS.items()}

"""BLEU-4 of answers (Papineni et al. 2002), by the library sacrebleu.

BLEU is a measure of a corpus: n-gram matches are summed over all answers before the precisions are computed, as in sacrebleu and the
literature. (LLaMA-Factory averages nltk's sentence BLEU of characters with smoothing instead, where a perfect answer of three tokens
scores far below 100; the two are not comparable.)
"""

from __future__ import annotations

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from llmmod.metrics.words import has_chinese

_ORDER = 4  # the longest n-grams, in tokens
_CACHED = (Tokenizer13a, TokenizerZh, TokenizerRegexp)


class Bleu:
    """Corpus BLEU-4 in percent, from sums only, so memory doesn't grow with the number of answers.

    The same as `sacrebleu.corpus_bleu(predictions, [labels], use_effective_order=True)`. Labels with Chinese text, and their predictions,
    are tokenized with `tokenize="zh"`, character by character; the others with the default, `13a`. The effective order matters only if
    all predictions are shorter than four tokens: longer n-grams, which don't occur, are then left out, since they would make a perfect
    score 0.
    """

    def __init__(self) -> None:
        self._latin = BLEU(effective_order=True)
        self._chinese = BLEU(tokenize="zh", effective_order=True)
        self._matches = [0] * _ORDER
        self._totals = [0] * _ORDER
        self._predict_tokens = 0
        self._label_tokens = 0
        self._answers = 0

    def update(self, predict: str, label: str) -> None:
        """Count one answer, `predict`, against the data's answer, `label`."""
        bleu = self._chinese if has_chinese(label) else self._latin
        counted = bleu.sentence_score(predict, [label])
        self._matches = [a + b for a, b in zip(self._matches, counted.counts, strict=True)]
        self._totals = [a + b for a, b in zip(self._totals, counted.totals, strict=True)]
        self._predict_tokens += counted.sys_len
        self._label_tokens += counted.ref_len
        self._answers += 1
        for tokenizer in _CACHED:  # sacrebleu keeps the last 65,536 texts, each twice or more
            tokenizer.__call__.cache_clear()

    def compute(self) -> dict[str, float]:
        """`bleu-4` from 0 to 100; empty without answers."""
        if not self._answers:
            return {}
        score = BLEU.compute_bleu(
            self._matches, self._totals, self._predict_tokens, self._label_tokens, smooth_method="exp", effective_order=True
        )
        return {"bleu-4": score.score}

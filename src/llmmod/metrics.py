"""Metrics of answers: BLEU, ROUGE, exact answers, their length and repetition, and the words that all of these count.

Each class is a `llmmod.protocols.Metric`. It keeps sums, so memory doesn't grow with the number of answers. Its libraries are imported when
it is created.

Your own metric, in a file of your working directory, is named in the same way: `+steps.predict.metrics.mine._target_=my_module.Mine`.
"""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
import warnings
from typing import Any, ClassVar

# CJK unified ideographs with extension A, the compatibility block, and the supplementary planes 2 and 3.
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KINDS = {"rouge1": "rouge-1", "rouge2": "rouge-2", "rougeL": "rouge-l"}  # rouge_score's names -> ours
_SIZE = 4  # the words of an n-gram in `Repetition`, and the most tokens of one in `Bleu`


def has_chinese(text: str) -> bool:
    """Whether a Han character occurs; true for Japanese with kanji too."""
    return _HAN.search(text) is not None


def words(text: str) -> list[str]:
    """The words of `text` in order, in lower case, without punctuation, symbols and white space.

    Chinese is split with jieba, other text at characters that aren't letters or digits. For ASCII text these are exactly the words of
    rouge_score's own tokenizer. That tokenizer drops every other letter: a Chinese answer would not have any words, and `café` would be
    `caf`. Other languages without spaces are not split.
    """
    found: list[str] = []
    for word in "".join(c if _belongs(c) else " " for c in text.lower()).split():
        found.extend(_jieba().lcut(word) if has_chinese(word) else [word])
    return found


def _belongs(character: str) -> bool:
    """Whether a character is part of a word: a letter, a digit, or a mark on one (the vowels of Hindi are marks)."""
    return unicodedata.category(character)[0] in "LNM"


@functools.cache
def _jieba() -> Any:
    """The module jieba, silenced; imported for the first Chinese text, since its dictionary takes 0.7 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba 0.42.1 imports pkg_resources if it is installed, which warns of its removal
        import jieba
    jieba.setLogLevel(logging.CRITICAL)  # it logs its loading to stderr, and a cache that it can't write with a traceback
    return jieba


class Rouge:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) in percent, averaged over answers, by the library rouge_score.

    An answer without words counts 0. Without stemming; ROUGE-L treats an answer as one sentence.
    """

    def __init__(self) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        self._scorer = RougeScorer(list(_KINDS), tokenizer=_Words())
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


class _Words:
    """A tokenizer for rouge_score that also works for other languages than English."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


class Bleu:
    """Corpus BLEU-4 in percent (Papineni et al. 2002), by the library sacrebleu.

    The same as `sacrebleu.corpus_bleu(predictions, [labels], use_effective_order=True)`. Labels with Chinese text, and their predictions,
    are tokenized with `tokenize="zh"`, character by character; the others with the default, `13a`. The effective order matters only if
    all predictions are shorter than four tokens: longer n-grams, which don't occur, are then left out, since they would make a perfect
    score 0.

    BLEU is a measure of a corpus: n-gram matches are summed over all answers before the precisions are computed, as in sacrebleu and the
    literature. (LLaMA-Factory averages nltk's sentence BLEU of characters with smoothing instead, where a perfect answer of three tokens
    scores far below 100; the two are not comparable.)
    """

    def __init__(self) -> None:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
        from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp
        from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

        self._latin = BLEU(effective_order=True)
        self._chinese = BLEU(tokenize="zh", effective_order=True)
        self._cached = (Tokenizer13a, TokenizerZh, TokenizerRegexp)
        self._matches = [0] * _SIZE
        self._totals = [0] * _SIZE
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
        for tokenizer in self._cached:  # sacrebleu keeps the last 65,536 texts, each twice or more
            tokenizer.__call__.cache_clear()

    def compute(self) -> dict[str, float]:
        """`bleu-4` from 0 to 100; empty without answers."""
        if not self._answers:
            return {}
        sums = (self._matches, self._totals, self._predict_tokens, self._label_tokens)
        return {"bleu-4": self._latin.compute_bleu(*sums, smooth_method="exp", effective_order=True).score}


class Exact:
    """The percentage of answers with the same words as the data's answer; case, punctuation and white space are ignored.

    It is SQuAD's exact match (Rajpurkar et al. 2016), in any language.
    """

    def __init__(self) -> None:
        self._exact = self._answers = 0

    def update(self, predict: str, label: str) -> None:
        """Count one answer, `predict`, against the data's answer, `label`."""
        self._exact += words(predict) == words(label)
        self._answers += 1

    def compute(self) -> dict[str, float]:
        """`exact` from 0 to 100; empty without answers."""
        return {"exact": 100 * self._exact / self._answers} if self._answers else {}


class Length:
    """The mean number of words of an answer, which changes with a reward that prefers longer or shorter ones."""

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


class Repetition:
    """The percentage of an answer's 4-grams that occur earlier in it, averaged over answers (seq-rep-4, Welleck et al. 2020).

    For an answer of fewer than four words it is 0. Policies start to repeat a text to which the reward model gives high scores.
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

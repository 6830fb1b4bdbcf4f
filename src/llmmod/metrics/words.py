"""Splits a text into the words that metrics count: Chinese with jieba, other text at characters that aren't letters or digits.

For ASCII text these are exactly the words of rouge_score's own tokenizer. That tokenizer drops every other letter: a Chinese answer would
not have any words, and `café` would be `caf`. Other languages without spaces are not split.
"""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
import warnings
from typing import Any

# CJK unified ideographs with extension A, the compatibility block, and the supplementary planes 2 and 3.
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def has_chinese(text: str) -> bool:
    """Whether a Han character occurs; true for Japanese with kanji too."""
    return _HAN.search(text) is not None


def words(text: str) -> list[str]:
    """The words of `text` in order, in lower case, without punctuation, symbols and white space."""
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

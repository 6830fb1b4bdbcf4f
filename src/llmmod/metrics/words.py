"""A text cut into the words that a metric counts: Chinese by jieba, everything else at what is no letter or digit.

On ASCII text these are exactly the words of rouge_score's own tokenizer, which drops every other letter: a Chinese answer would have
no words there, and `café` would be `caf`. Languages that write without spaces, other than Chinese, stay uncut.
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
    """Whether a Han character occurs; true of Japanese with kanji as well."""
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
    """The module jieba, silent; imported where Chinese first occurs, since its dictionary takes 0.7 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba 0.42.1 imports pkg_resources where there is one, which warns of its end
        import jieba
    jieba.setLogLevel(logging.CRITICAL)  # it reports its loading on stderr, and a cache it could not write with a traceback
    return jieba

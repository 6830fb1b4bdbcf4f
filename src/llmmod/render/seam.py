"""Where two lists of ids part, as a person reads it: the tokens before, and how each goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BEFORE, _AFTER = 4, 6  # tokens shown on each side of the seam


def seam(tokenizer: Any, **ids: Sequence[int]) -> str:
    """A line for each list, from a few tokens before they part on.

    Args:
        tokenizer: gives the tokens' spellings.
        ids: name -> ids, or labels; two lists that are not equal.
    """
    one, other = ids.values()
    at = parting(one, other)
    width = max(map(len, ids))
    return "\n".join(f"  {name:>{width}}: {_shown(tokenizer, list(found), at)}" for name, found in ids.items())


def parting(one: Sequence[int], other: Sequence[int]) -> int:
    """The first position at which two lists differ, the length of the shorter where it begins the longer."""
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def spelling(tokenizer: Any, token: int) -> str:
    """A token and its id on one line: its text in quotes, where that is not how the vocabulary spells it, and it is a text of its own."""
    name, text = str(tokenizer.convert_ids_to_tokens(token)), tokenizer.decode([token])
    is_text = text and text != name and "\ufffd" not in text and not name.startswith("▁")
    return f"{repr(text) if is_text else name}({token})"


def _shown(tokenizer: Any, ids: list[int], at: int) -> str:
    start, end = max(0, at - _BEFORE), at + _AFTER
    spelt = ["masked" if token < 0 else spelling(tokenizer, token) for token in ids[start:end]]
    before, after = " ".join(spelt[: at - start]), " ".join(spelt[at - start :]) or "the end"
    return f"{'… ' if start else ''}{before} ▶ {after}{' …' if end < len(ids) else ''}"

"""The unit between a conversation and its tokens: a piece of text, or one token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Piece = str | int  # a text, or the id of a token


class Segment(NamedTuple):
    """A text that is encoded on its own, or one token. Exactly one of `text` and `token` is set.

    Where a text begins and ends is part of what the model learns: a prompt's text between two tokens is one segment, an answer is always
    one of its own, since generation starts there.

    Args:
        text: encoded without special tokens, and with nothing in it read as one.
        token: the id of a token.
        trained: whether its ids are labels.
        first_label: the label of its first position, where that is neither its id nor nothing: renders without a terminator between
            rounds train it in the place of the token that follows.
    """

    text: str | None = None
    token: int | None = None
    trained: bool = False
    first_label: int | None = None


def segments(pieces: Iterable[Piece], *, trained: bool) -> list[Segment]:
    """A segment for each token and for each run of texts, which are joined; empty texts leave no trace."""
    found: list[Segment] = []
    texts: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            texts.append(piece)
            continue
        if text := "".join(texts):
            found.append(Segment(text, None, trained))
        texts.clear()
        found.append(Segment(None, piece, trained))
    if text := "".join(texts):
        found.append(Segment(text, None, trained))
    return found

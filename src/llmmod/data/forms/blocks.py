"""Documents to rows of one length: joined and cut into blocks, or each in pieces of its own.

A token that stands first in a row is never predicted, since nothing of its document stands before it there; so no row is a single token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

Ids = Any  # a numpy array of int32


def join(documents: Iterable[Ids], size: int, *, drop_last: bool = False) -> Iterator[Ids]:
    """Blocks of `size` tokens, which are those of the documents one after the other.

    Args:
        documents: their ids; several in one array are as good as several arrays.
        size: tokens.
        drop_last: whether what is left at the end is left out; false: it is a shorter block, from two tokens on.
    """
    rest = np.empty(0, np.int32)
    for ids in documents:
        rest = np.concatenate([rest, np.asarray(ids, np.int32)])
        stop = len(rest) // size * size
        yield from (rest[start : start + size] for start in range(0, stop, size))
        rest = rest[stop:]
    if len(rest) > 1 and not drop_last:
        yield rest


def pieces(document: Ids, size: int) -> Iterator[Ids]:
    """A document in pieces of `size` tokens, the last of which is shorter; where it would be a single token, it takes one more."""
    ends = [*range(size, len(document), size), len(document)]
    if len(ends) > 1 and ends[-1] - ends[-2] == 1 and size > 2:
        ends[-2] -= 1
    starts = [0, *ends[:-1]]
    yield from (document[start:end] for start, end in zip(starts, ends, strict=True))

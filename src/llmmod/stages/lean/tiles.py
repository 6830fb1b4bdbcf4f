"""Rows of logits a few at a time, so that no second array of their size is made."""

from __future__ import annotations

from collections.abc import Iterator

_ROWS = 32  # whose exponentials are held at once


def tiles(count: int) -> Iterator[slice]:
    """Slices of a few rows each, which cover `count` rows in order."""
    return (slice(start, start + _ROWS) for start in range(0, count, _ROWS))

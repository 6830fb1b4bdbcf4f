"""A histogram as shares of its width and height, for whoever draws it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

_MOST = 40  # bars
_TICKS = 5  # at most, besides 0


class Bar(NamedTuple):
    """A bar; `left`, `width` and `height` in percent of the drawing."""

    left: float
    width: float
    height: float
    first: int  # tokens, the shortest length it counts
    last: int  # tokens, the longest
    examples: int


class Histogram(NamedTuple):
    """What to draw.

    Args:
        bars: those that count anything.
        most: examples of the highest.
        ticks: (place in percent, tokens).
        median: the place of the median in percent.
        cutoff: the place of the limit in percent; None: far to the right of all examples, and not drawn.
    """

    bars: list[Bar]
    most: int
    ticks: list[tuple[float, int]]
    median: float
    cutoff: float | None


def histogram(lengths: Sequence[int], cutoff_len: int) -> Histogram:
    """The lengths, in tokens, in up to 40 bars of equal and round width; each counts its right edge, so that none stands beyond the limit.

    Args:
        lengths: one an example, at least one.
        cutoff_len: tokens; drawn where it leaves the bars at least two fifths of the width.
    """
    longest = max(lengths)
    far = longest < 0.4 * cutoff_len
    right = longest if far else max(longest, cutoff_len)
    width = _round_step(right / _MOST)
    end = -(-right // width) * width
    counts = Counter(max(0, length - 1) // width for length in lengths)
    most = max(counts.values())
    share = 100 / end
    bars = [
        Bar(number * width * share, width * share, 100 * count / most, number * width + 1, (number + 1) * width, count)
        for number, count in sorted(counts.items())
    ]
    step = _round_step(end / _TICKS)
    ticks = [(tokens * share, tokens) for tokens in range(0, end + 1, step)]
    return Histogram(bars, most, ticks, median(lengths) * share, None if far else cutoff_len * share)


def _round_step(least: float) -> int:
    """The first of 1, 2, 5, 10, 20, 50, … that is not below `least`."""
    power = 10 ** max(0, math.floor(math.log10(max(least, 1))))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)

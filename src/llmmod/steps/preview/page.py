"""The page that shows what training sees: one HTML file with all it needs in it, written by a template that escapes every value.

A histogram as shares of its width and height, for whoever draws it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from statistics import median
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined

from llmmod.render.encode import IGNORED
from llmmod.render.findings import Finding
from llmmod.steps.preview.figures import Packs
from llmmod.steps.preview.tokens import Shown

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


_TEMPLATE = "page.html"  # beside this module


class Tile(NamedTuple):
    """A figure with what there is to say about it.

    Args:
        name: of what.
        value: the figure.
        notes: a line each.
        share: a bar below it, 0 to 1; None: no bar.
        warns: whether it is one that nobody hopes for.
    """

    name: str
    value: str
    notes: Sequence[str] = ()
    share: float | None = None
    warns: bool = False


class Verdict(NamedTuple):
    """What the certificate says."""

    refused: bool
    headline: str
    explanation: str
    findings: Sequence[Finding]


class IdRow(NamedTuple):
    """A line of the table of ids; `text` is what its token says, with those below it where only several make a character."""

    at: int
    id: int
    name: str
    text: str
    label: int


@dataclass(frozen=True)
class Example:
    """An example as the page shows it.

    Args:
        number: from 1 on.
        name: what it is called.
        shown: its tokens.
        rows: of its table of ids.
    """

    number: int
    name: str
    shown: Sequence[Shown]
    rows: Sequence[IdRow]

    @property
    def tokens(self) -> int:
        """Tokens there are."""
        return len(self.rows)

    @property
    def trained(self) -> int:
        """Positions with a label."""
        return sum(row.label != IGNORED for row in self.rows)

    @property
    def runs(self) -> list[tuple[bool, list[Shown]]]:
        """Its tokens in runs of trained and masked ones."""
        return [(trained, list(run)) for trained, run in groupby(self.shown, lambda piece: piece.trained)]


@dataclass(frozen=True)
class Contents:
    """All that the page says.

    Args:
        title: the dataset's name.
        lines: where the data comes from and how it was read.
        choices: (part, option).
        verdict: the certificate's.
        tiles: figures.
        lengths: tokens, one an example.
        cutoff_len: tokens.
        packs: how examples share rows; None: they don't.
        examples: the shown ones.
        examples_title: which they are.
        footer: a line.
    """

    title: str
    lines: Sequence[str]
    choices: Sequence[tuple[str, str]]
    verdict: Verdict
    tiles: Sequence[Tile]
    lengths: Sequence[int]
    cutoff_len: int
    packs: Packs | None
    examples: Sequence[Example]
    examples_title: str
    footer: str


def page(contents: Contents) -> str:
    """The page as HTML."""
    text = files("llmmod.steps.preview").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(text)
    return template.render(vars(contents), histogram=histogram(contents.lengths, contents.cutoff_len), ignored=IGNORED)

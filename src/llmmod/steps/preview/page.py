"""The page of a preview: what training will see.

It shows tiles (a value with a few notes) and a histogram of lengths, whose bars are in percent of the drawing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from llmmod.data.dataset.splits import DataReport
from llmmod.pages.page import Tile
from llmmod.pages.page import page as page_of
from llmmod.render.encode import IGNORED
from llmmod.steps.preview.examples import Example, Verdict
from llmmod.steps.preview.figures import Figures, Measured, Packs, Plan

_TEMPLATE = "page.html"  # in this package
_MOST_BARS = 40
_MOST_TICKS = 5  # besides 0


@dataclass(frozen=True)
class Contents:
    """The contents of the page.

    Args:
        title: the dataset's name.
        lines: where the data comes from, and how it was read.
        choices: (part, option).
        verdict: the certificate's.
        tiles: values with notes.
        lengths: tokens of each example.
        cutoff_len: tokens.
        packs: how examples share rows; None: each row is one example.
        examples: the examples to show.
        examples_title: their heading, which says how they were chosen.
        footer: the last line.
        plan: the memory that the step `plan` found, as the address of an image; empty: nothing was planned.
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
    plan: str = ""


def page(contents: Contents) -> str:
    """The page as HTML."""
    drawing = histogram(contents.lengths, contents.cutoff_len)
    return page_of("llmmod.steps.preview", _TEMPLATE, histogram=drawing, ignored=IGNORED, **vars(contents))


class Bar(NamedTuple):
    """A bar; `left`, `width` and `height` in percent of the drawing."""

    left: float
    width: float
    height: float
    first: int  # tokens, the shortest length it counts
    last: int  # tokens, the longest
    examples: int


class Histogram(NamedTuple):
    """The bars and the axis. Places are in percent of the width.

    Args:
        bars: bars that count at least one example.
        most: examples of the highest bar.
        ticks: (place, tokens).
        median: the place of the median.
        cutoff: the place of the limit; None: it lies far to the right of all examples, and isn't drawn.
    """

    bars: list[Bar]
    most: int
    ticks: list[tuple[float, int]]
    median: float
    cutoff: float | None


def histogram(lengths: Sequence[int], cutoff_len: int) -> Histogram:
    """The lengths in up to 40 bars of the same round width. A bar includes its right edge, so none lies beyond the limit.

    Args:
        lengths: tokens of each example, at least one.
        cutoff_len: tokens; drawn where the bars then keep at least two fifths of the width.
    """
    longest = max(lengths)
    far = longest < 0.4 * cutoff_len
    right = longest if far else max(longest, cutoff_len)
    width = _round_step(right / _MOST_BARS)
    end = -(-right // width) * width
    counts = Counter(max(0, length - 1) // width for length in lengths)
    most = max(counts.values())
    share = 100 / end
    bars = [
        Bar(number * width * share, width * share, 100 * count / most, number * width + 1, (number + 1) * width, count)
        for number, count in sorted(counts.items())
    ]
    step = _round_step(end / _MOST_TICKS)
    ticks = [(tokens * share, tokens) for tokens in range(0, end + 1, step)]
    return Histogram(bars, most, ticks, median(lengths) * share, None if far else cutoff_len * share)


def _round_step(least: float) -> int:
    """The first of 1, 2, 5, 10, 20, 50, … that is at least `least`."""
    power = 10 ** max(0, math.floor(math.log10(max(least, 1))))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def tiles(report: DataReport, measured: Measured) -> list[Tile]:
    """The tiles of the page: the data and the training steps.

    Args:
        report: the rows that were read, skipped and cut.
        measured: the numbers of the examples.
    """
    figures, packs, plan = measured
    of_data = [_examples(report, figures), _tokens(figures), _lengths(report, figures)]
    return [
        *of_data,
        *([_fitting(report)] if figures.complete else []),
        *([_packs(packs, figures)] if packs else []),
        _steps(plan),
        _run(figures, plan),
    ]


def counted(number: int, noun: str) -> str:
    """The number and the noun, which is plural unless the number is 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _examples(report: DataReport, figures: Figures) -> Tile:
    held = f"{report.eval.examples:,} held out to validate with"
    value, note = (f"{figures.examples:,}", f"from {counted(report.rows, 'row')}; {held}") if figures.complete else ("a stream", held)
    bad = [f"{counted(report.skipped, 'bad row')} left out; the first: {report.reasons[0]}"] if report.skipped else []
    return Tile("Examples to train on", value, [note, *bad], warns=bool(bad))


def _tokens(figures: Figures) -> Tile:
    of = "" if figures.complete else f" of the first {counted(figures.examples, 'example')}"
    if not figures.trained_tokens:
        return Tile("Tokens" + of, f"{figures.tokens:,}", ["of prompts; the model writes completions while it trains"])
    trained = f"{figures.trained_share:.0%} of them trained: {figures.trained_tokens:,}"
    return Tile("Tokens" + of, f"{figures.tokens:,}", [trained], share=figures.trained_share)


def _lengths(report: DataReport, figures: Figures) -> Tile:
    shortest, longest = min(figures.lengths), max(figures.lengths)
    note = f"from {shortest:,} to {longest:,} tokens; cutoff_len is {report.cutoff_len:,}"
    return Tile("Median length", f"{figures.median:,}", [note])


def _fitting(report: DataReport) -> Tile:
    cut, dropped, ends = report.train.cut, report.train.dropped, report.train.ends_lost
    notes = [f"longer than cutoff_len={report.cutoff_len:,}"] if cut else []
    if dropped:
        notes.append(f"{dropped:,} left out as longer than cutoff_len={report.cutoff_len:,}")
    if ends:
        notes.append(f"{ends:,} of them lost the end of their answer")
    if report.eval.cut or report.eval.dropped:
        notes.append(f"of those to validate with, {report.eval.cut:,} cut and {report.eval.dropped:,} left out")
    if not cut and not dropped:
        notes.append("every example fits into cutoff_len")
    return Tile("Examples cut", f"{cut:,}", notes, warns=bool(cut or dropped))


def _steps(plan: Plan) -> Tile:
    parts = [counted(plan.per_device, "row")]
    parts += [f"{plan.accumulation} accumulated"] if plan.accumulation > 1 else []
    parts += [f"{plan.devices} devices"] if plan.devices > 1 else []
    batch = f" = {plan.batch:,} rows a step" if len(parts) > 1 else " a step"
    epochs = [] if plan.epochs is None else [f"{plan.epochs:.3g} {'epoch' if plan.epochs == 1 else 'epochs'}"]
    return Tile("Optimizer steps", "unknown" if plan.steps is None else f"{plan.steps:,}", [*epochs, " × ".join(parts) + batch])


def _run(figures: Figures, plan: Plan) -> Tile:
    if plan.rows is None:  # the first examples of a stream aren't packed
        a_step = figures.tokens / max(1, figures.examples) * plan.batch
    else:
        a_step = figures.tokens / max(1, plan.rows) * min(plan.batch, plan.rows)
    total = figures.tokens * plan.epochs if plan.epochs is not None else None if plan.steps is None else a_step * plan.steps
    shown = "unknown" if total is None else f"{total:,.0f}"
    return Tile("Tokens in the whole run", shown, [f"about {a_step:,.0f} a step, padding not counted"])


def _packs(packs: Packs, figures: Figures) -> Tile:
    each = figures.examples / packs.rows
    notes = [f"of {counted(packs.rows, 'row')} of {packs.capacity:,} tokens; {each:.1f} examples a row, which don't see each other"]
    return Tile("Packs are full to", f"{packs.fill:.1%}", notes, share=packs.fill)

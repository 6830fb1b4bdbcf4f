"""Pages: one self-contained HTML file each, from a template that escapes every value, with line charts drawn as SVG.

A page's template stands beside the module that fills it and extends `base.html`, which brings the style, the hints under the pointer and,
by `{% import "parts.html" as parts %}`, the macros `heading`, `verdict`, `tiles` and `chart`; a page with charts includes `charts.js` in
its block `script`. Nothing is loaded from elsewhere, and the size of a page does not grow with the length of a run: a line has at most
some hundreds of points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined

from llmmod.files.paths import atomic_write

MOST_POINTS = 400  # of a line; a chart is some 800 pixels wide
_COLOURS = 8  # --c0 to --c7 of style.css
_DOTS = 40  # points of a line up to which each is marked
_TICKS = 5
_LOGARITHMIC = 1000.0  # highest to lowest value from which a chart has a logarithmic axis, if it may


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


class Line(NamedTuple):
    """A line of a chart.

    Args:
        name: as the key and the hints have it.
        points: (x, y) by ascending x; those that are not finite are left out.
        colour: 0 to 7; None: the next one.
        faint: whether it stands behind others, such as raw values behind their mean.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int | None = None
    faint: bool = False


class Tick(NamedTuple):
    """A number beside an axis; `place` in percent of the drawing, from the left or from the top."""

    place: float
    text: str


class DrawnLine(NamedTuple):
    """A line as the macro `chart` writes it: `drawn` and `dots` in percent of the drawing, `data` as JSON, `last` its last value."""

    name: str
    colour: int
    faint: bool
    drawn: str
    dots: Sequence[tuple[float, float]]
    data: str
    last: str


class Chart(NamedTuple):
    """What the macro `chart` draws."""

    title: str
    unit: str
    lines: Sequence[DrawnLine]
    x: tuple[float, float]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    note: str


def page(package: str, template: str, /, **contents: Any) -> str:
    """The page as HTML.

    Args:
        package: that holds the template, `llmmod.steps.preview`.
        template: its file name.
        contents: the template's variables; one that is missing is an error.
    """
    return _environment(package).get_template(template).render(contents)


def write_page(path: Path, text: str) -> None:
    """Write a page, whole or not at all. Half of a surrogate pair, which no file can hold, becomes a question mark."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")


@cache
def _environment(package: str) -> Environment:
    def load(name: str) -> str | None:
        places = (files(each).joinpath(name) for each in (package, "llmmod.pages"))
        return next((place.read_text(encoding="utf-8") for place in places if place.is_file()), None)

    return Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(load))


def chart(title: str, lines: Iterable[Line], *, unit: str = "optimizer step", logarithmic: bool = False) -> Chart | None:
    """A chart of lines, or None where nothing is to be drawn.

    Args:
        title: above it.
        lines: those without a finite point are left out.
        unit: of the horizontal axis.
        logarithmic: whether the vertical axis may be, which it is where all values are positive and far apart.
    """
    given = [line._replace(points=[(float(x), float(y)) for x, y in line.points]) for line in lines]
    finite = [line._replace(points=[(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]) for line in given]
    left_out = sum(len(line.points) for line in given) - sum(len(line.points) for line in finite)
    kept = [line._replace(points=thinned(line.points)) for line in finite if line.points]
    if not kept:
        return None
    xs, ys = ([point[axis] for line in kept for point in line.points] for axis in (0, 1))
    by_logarithm = logarithmic and min(ys) > 0 and max(ys) / min(ys) >= _LOGARITHMIC
    scaled = (lambda y: math.log10(y)) if by_logarithm else (lambda y: y)
    left, right = (min(xs), max(xs)) if max(xs) > min(xs) else _padded(min(xs), max(xs), share=0.0)
    low, high = _padded(scaled(min(ys)), scaled(max(ys)), share=0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        return round(100 * (x - left) / (right - left), 2), round(100 * (high - scaled(y)) / (high - low), 2)

    drawn = []
    for number, line in enumerate(kept):
        places = [place(x, y) for x, y in line.points]
        dots = places if len(places) <= _DOTS and not line.faint else []
        colour = (number if line.colour is None else line.colour) % _COLOURS
        text, data = " ".join(f"{x:g},{y:g}" for x, y in places), json.dumps([[x, float(f"{y:.6g}")] for x, y in line.points])
        drawn.append(DrawnLine(line.name, colour, line.faint, text, dots, data, "" if line.faint else number_text(line.points[-1][1])))
    if by_logarithm:
        marks = [(10.0**power, number_text(10.0**power)) for power in range(math.ceil(low), math.floor(high) + 1)]
    else:
        marks = list(zip(ticks(low, high), _apart(ticks(low, high)), strict=True))
    across = [x for x in ticks(left, right) if x == int(x) or any(x != int(x) for x in xs)]
    return Chart(
        title,
        unit,
        drawn,
        (left, right),
        [Tick(place(x, max(ys))[0], f"{x:,.10g}") for x in across],
        [Tick(place(left, y)[1], text) for y, text in marks],
        f"{left_out:,} values that are not finite are left out" if left_out else "",
    )


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` of the points, in order: both ends, and of equal stretches the lowest and the highest each, so that a spike stays."""
    if len(points) <= most:
        return list(points)
    inner, stretches = range(1, len(points) - 1), max(1, (most - 2) // 2)
    chosen = {0, len(points) - 1}
    for stretch in range(stretches):
        numbers = inner[stretch * len(inner) // stretches : (stretch + 1) * len(inner) // stretches]
        chosen |= {min(numbers, key=lambda n: points[n][1]), max(numbers, key=lambda n: points[n][1])}
    return [points[number] for number in sorted(chosen)]


def ticks(low: float, high: float, most: int = _TICKS) -> list[float]:
    """Round numbers between two, at most `most` + 1 of them: multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * most >= (high - low) * (1 - 1e-9))
    return [float(f"{number * step:.12g}") for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _apart(values: Sequence[float]) -> list[str]:
    """Numbers to read, with as many digits as it takes to tell them apart."""
    texts = [number_text(value) for value in values]
    return texts if len(set(texts)) == len(texts) else [f"{value:,.10g}" for value in values]


def number_text(value: float) -> str:
    """A number to read: at most five significant digits, thousands apart, small ones as powers of ten."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) < 1e-3:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.5g}"


def _padded(low: float, high: float, *, share: float) -> tuple[float, float]:
    """A range that is not empty, a little wider than what lies in it. Values that differ by the rounding of float32 are one value."""
    if high - low <= abs(high) * 1e-6:
        half = abs(high) / 2 or 0.5
        return low - half, high + half
    return low - share * (high - low), high + share * (high - low)

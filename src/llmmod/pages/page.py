"""Pages: one self-contained HTML file each, from a template that escapes every value, with line charts drawn as SVG.

A page's template is next to the module that fills it and extends `base.html`, which has the style and the tooltips. With
`{% import "parts.html" as parts %}` it has the macros `heading`, `verdict`, `tiles` and `chart`; a page with charts includes `charts.js`
in its block `script`. A page doesn't load other files, and its size doesn't grow with the length of a run: a line has at most a few
hundred points.
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

MOST_POINTS = 400  # of a line; a chart is about 800 pixels wide
_COLOURS = 8  # --c0 to --c7 of style.css
_DOTS = 40  # a line with at most so many points has a dot at each
_TICKS = 5
_LOGARITHMIC = 1000.0  # ratio of the highest to the lowest value above which a chart may have a logarithmic axis


class Tile(NamedTuple):
    """A figure with its notes.

    Args:
        name: of the figure.
        value: the figure.
        notes: a line each.
        share: a bar below it, 0 to 1; None: no bar.
        warns: whether it is a warning.
    """

    name: str
    value: str
    notes: Sequence[str] = ()
    share: float | None = None
    warns: bool = False


class Line(NamedTuple):
    """A line of a chart.

    Args:
        name: in the key and the tooltips.
        points: (x, y) by ascending x; those that are not finite are left out.
        colour: 0 to 7; None: the next one.
        faint: whether it is in the background, such as raw values behind their mean.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int | None = None
    faint: bool = False


class Tick(NamedTuple):
    """A number on an axis; `place` in percent of the drawing, from the left or from the top."""

    place: float
    text: str


class DrawnLine(NamedTuple):
    """A line as the macro `chart` draws it: `drawn` and `dots` in percent of the drawing, `data` as JSON, `last` its last value."""

    name: str
    colour: int
    faint: bool
    drawn: str
    dots: Sequence[tuple[float, float]]
    data: str
    last: str


class Chart(NamedTuple):
    """The input of the macro `chart`."""

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
        package: of the template, such as `llmmod.steps.preview`.
        template: its file name.
        contents: the template's variables; a missing one is an error.
    """
    return _environment(package).get_template(template).render(contents)


def write_page(path: Path, text: str) -> None:
    """Write a page completely or not at all. Half of a surrogate pair, which can't be encoded, becomes a question mark."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")


@cache
def _environment(package: str) -> Environment:
    def load(name: str) -> str | None:
        places = (files(each).joinpath(name) for each in (package, "llmmod.pages"))
        return next((place.read_text(encoding="utf-8") for place in places if place.is_file()), None)

    return Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(load))


def chart(title: str, lines: Iterable[Line], *, unit: str = "optimizer step", logarithmic: bool = False) -> Chart | None:
    """A chart of lines, or None without a line to draw.

    Args:
        title: above it.
        lines: those without a finite point are left out.
        unit: of the horizontal axis.
        logarithmic: whether the vertical axis may be logarithmic; it is if all values are positive and far apart.
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
    """At most `most` of the points, in order: both ends, and the lowest and highest of equal stretches, so that a spike stays."""
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
    """Numbers as text, with enough digits to distinguish them."""
    texts = [number_text(value) for value in values]
    return texts if len(set(texts)) == len(texts) else [f"{value:,.10g}" for value in values]


def number_text(value: float) -> str:
    """A number as text: at most five significant digits, with separated thousands; small ones as powers of ten."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) < 1e-3:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.5g}"


def _padded(low: float, high: float, *, share: float) -> tuple[float, float]:
    """A range that is not empty, a little wider than its values. Values that differ only by the rounding of float32 count as equal."""
    if high - low <= abs(high) * 1e-6:
        half = abs(high) / 2 or 0.5
        return low - half, high + half
    return low - share * (high - low), high + share * (high - low)

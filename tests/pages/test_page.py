"""Charts by hand: the positions of points and ticks, and what is left out. A page shows hostile names as text."""

from __future__ import annotations

import json
import math

import pytest

from llmmod.pages.page import Line, chart, number_text, thinned, ticks, write_page


def test_points_stand_in_percent_of_the_drawing():
    drawn = chart("loss", [Line("training", [(0, 1.0), (5, 3.0), (10, 2.0)])])
    # The range 1 to 3 gets a margin of a twentieth, 0.1, above and below: 3 is 0.1 of 2.2 from the top.
    (line,) = drawn.lines
    assert line.dots == [(0, pytest.approx(95.45)), (50, pytest.approx(4.55)), (100, 50)]
    assert line.drawn == "0,95.45 50,4.55 100,50"
    assert json.loads(line.data) == [[0, 1], [5, 3], [10, 2]]
    assert [(tick.place, tick.text) for tick in drawn.x_ticks] == [(0, "0"), (20, "2"), (40, "4"), (60, "6"), (80, "8"), (100, "10")]
    assert [tick.text for tick in drawn.y_ticks] == ["1", "1.5", "2", "2.5", "3"]


def test_what_is_not_finite_is_left_out_and_counted():
    drawn = chart("loss", [Line("a", [(0, 1.0), (1, math.nan), (2, math.inf)]), Line("b", [(0, math.nan)]), Line("c", [])])
    assert [line.name for line in drawn.lines] == ["a"]
    assert drawn.note.startswith("3 values")
    assert chart("loss", [Line("b", [(0, math.nan)])]) is None


@pytest.mark.parametrize("value", [0.0, 2.5, -3.0, 1e-30, 1e30])
def test_a_line_of_one_value_has_a_range(value):
    drawn = chart("one", [Line("a", [(3, value)])])
    assert [line.dots for line in drawn.lines] == [[(50, 50)]]
    assert drawn.y_ticks


def test_values_apart_by_rounding_make_a_level_line_with_short_ticks():
    drawn = chart("entropy", [Line("training", [(1, 10.789912), (2, 10.789918)])])
    assert max(len(tick.text) for tick in drawn.y_ticks) <= 3
    (line,) = drawn.lines
    assert line.drawn == "0,50 100,50"


def test_a_logarithmic_axis_where_values_are_far_apart():
    values = [(0, 1000.0), (1, 10.0), (2, 1.0)]
    assert [tick.text for tick in chart("loss", [Line("a", values)], logarithmic=True).y_ticks] == ["1", "10", "100", "1000"]
    assert [tick.text for tick in chart("loss", [Line("a", values[1:])], logarithmic=True).y_ticks] == ["2", "4", "6", "8", "10"]
    assert "-0" not in [tick.text for tick in chart("loss", [Line("a", [*values, (3, -1.0)])], logarithmic=True).y_ticks]


def test_a_long_history_is_thinned_and_keeps_its_spikes():
    points = [(float(step), 1.0 + step % 7 / 100) for step in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    points[77_777] = (77_777.0, -9.0)
    kept = thinned(points)
    assert len(kept) <= 400
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert {points[54_321], points[77_777]} <= set(kept)
    assert kept == sorted(kept)
    assert thinned(points[:400]) == points[:400]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (3, 17, [5, 10, 15]), (0, 3e-6, [0, 1e-6, 2e-6, 3e-6])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (2.0, "2"), (0.693147, "0.69315"), (12345.6, "12,346"), (2e-5, "2e-05"), (-1.5, "-1.5"), (math.nan, "nan")],
)
def test_numbers_to_read(value, text):
    assert number_text(value) == text


def test_half_of_a_surrogate_pair_is_written(tmp_path):
    write_page(tmp_path / "page.html", "a\ud83db")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "a?b"

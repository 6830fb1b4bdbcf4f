"""Bars by hand: their edges, their heights, and the position of the limit."""

from __future__ import annotations

import pytest

from llmmod.steps.preview.page import histogram


def test_bars_count_their_right_edge():
    drawn = histogram([1, 2, 3, 3, 4], 4)
    assert [(bar.first, bar.last, bar.examples) for bar in drawn.bars] == [(1, 1, 1), (2, 2, 1), (3, 3, 2), (4, 4, 1)]
    assert [(bar.left, bar.width, bar.height) for bar in drawn.bars] == [(0, 25, 50), (25, 25, 50), (50, 25, 100), (75, 25, 50)]
    assert (drawn.most, drawn.median, drawn.cutoff) == (2, 75, 100)


def test_bars_are_at_most_forty_of_a_round_width():
    drawn = histogram(list(range(1, 1025)), 1024)
    # 1024 / 40 = 25.6 -> 50 tokens per bar: 20 full bars, the last one has 1001 to 1024.
    assert [bar.examples for bar in drawn.bars] == [50] * 20 + [24]
    assert drawn.cutoff == pytest.approx(100 * 1024 / 1050)
    assert [tokens for _, tokens in drawn.ticks] == [0, 500, 1000]


@pytest.mark.parametrize(("longest", "drawn"), [(40, True), (39, False)])
def test_a_limit_far_away_is_not_drawn(longest, drawn):
    assert (histogram([longest], 100).cutoff is not None) == drawn


def test_an_empty_example_is_counted():
    assert histogram([0, 3], 4).bars[0].examples == 1

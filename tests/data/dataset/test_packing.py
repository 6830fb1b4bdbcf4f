"""Packing places every example once, keeps rows within their capacity, fills them well, and is fast."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmmod.data.dataset.packing import pack


def rows_of(lengths, capacity):
    """Row -> its examples."""
    rows = {}
    for index, row in enumerate(pack(lengths, capacity)):
        rows.setdefault(row, []).append(index)
    return rows


@given(st.data(), st.integers(1, 300))
def test_each_example_is_in_one_row_that_holds_it(data, capacity):
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=200))
    rows = rows_of(lengths, capacity)
    assert sorted(index for row in rows.values() for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows.values())
    assert list(rows) == list(range(len(rows)))  # numbered in the order of their first examples
    # No two rows would fit into one: packing opens a row only for an example that doesn't fit the others.
    fullest = sorted(sum(lengths[index] for index in row) for row in rows.values())
    assert sum(fullest[:2]) > capacity or len(rows) < 2


@given(st.lists(st.integers(1, 30), max_size=60))
def test_the_same_rows_as_the_plain_algorithm(lengths):
    """Best-fit decreasing, written as it is defined, gives as many rows, equally full."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [place for place, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=rooms.__getitem__)] -= length
        else:
            rooms.append(30 - length)
    found = [30 - sum(lengths[index] for index in row) for row in rows_of(lengths, 30).values()]
    assert sorted(found) == sorted(rooms)


def test_by_hand():
    assert list(pack([3, 7, 5, 5, 2], 10)) == [0, 0, 1, 1, 2]
    assert list(pack([], 10)) == []


@pytest.mark.parametrize(("lengths", "found"), [([3, 11], "11"), ([0], "0")])
def test_lengths_that_do_not_fit_a_row_are_refused(lengths, found):
    with pytest.raises(ValueError, match=f"an example of {found} tokens doesn't fit a row of 10"):
        pack(lengths, 10)


def mixed(count, seed=0):
    """Lengths like those of alpaca's examples: 10 to 1,024, with a median of about 200."""
    draw = random.Random(seed)
    return [min(1024, max(10, int(draw.lognormvariate(5.3, 0.6)))) for _ in range(count)]


@pytest.mark.parametrize("capacity", [1024, 2048, 4096])
def test_10_000_examples_fill_98_of_100_positions(capacity):
    lengths = mixed(10_000)
    rows = rows_of(lengths, capacity)
    assert sum(lengths) / (len(rows) * capacity) >= 0.98


def test_the_time_grows_with_the_number_of_examples():
    """Ten times the examples take ten times as long, not a hundred times; CPU seconds, the best of three."""

    def seconds(count):
        lengths, taken = mixed(count), []
        for _ in range(3):
            began = time.process_time()
            pack(lengths, 4096)
            taken.append(time.process_time() - began)
        return min(taken)

    assert seconds(100_000) < 25 * seconds(10_000)

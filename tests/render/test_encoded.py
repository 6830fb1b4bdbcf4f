from __future__ import annotations

from llmmod.render.encode import Encoded

NO = -100
# Two turns: three prompt tokens, two of the answer, two of the next prompt, two of its answer, and one more.
EXAMPLE = Encoded([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [NO, NO, NO, 4, 5, NO, NO, 8, 9, NO])


def test_right_keeps_the_beginning():
    assert EXAMPLE.cut_right(4) == ([1, 2, 3, 4], [NO, NO, NO, 4])


def test_left_keeps_the_last_label_and_what_stands_before_it():
    assert EXAMPLE.cut_left(4) == ([6, 7, 8, 9], [NO, NO, 8, 9])
    assert EXAMPLE.cut_left(9) == (EXAMPLE.input_ids[:9], EXAMPLE.labels[:9])


def test_ids_and_labels_stay_side_by_side():
    for cut in (EXAMPLE.cut_left, EXAMPLE.cut_right):
        for limit in range(1, 11):
            ids, labels = cut(limit)
            assert len(ids) == len(labels) <= limit
            assert all(label in (NO, token) for token, label in zip(ids, labels, strict=True))


def test_the_first_label_trains_nothing():
    assert not Encoded([5, 6, 7], [5, NO, NO]).is_trained
    assert Encoded([4, 5], [NO, 5]).is_trained
    assert not Encoded([], []).is_trained


def test_the_end_is_the_position_after_the_last_label():
    assert EXAMPLE.end == 9
    assert Encoded([1, 2], [NO, NO]).end == 0

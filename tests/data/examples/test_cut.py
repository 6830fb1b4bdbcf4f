from __future__ import annotations

from llmmod.data.examples.cutoff import cut_left, cut_right, ends_at, is_trained
from llmmod.render.encode import Encoded

NO = -100
# Two turns: three prompt tokens, two of the answer, two of the next prompt, two of its answer, one that follows.
EXAMPLE = Encoded([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [NO, NO, NO, 4, 5, NO, NO, 8, 9, NO])


def test_right_keeps_the_beginning():
    assert cut_right(EXAMPLE, 4) == ([1, 2, 3, 4], [NO, NO, NO, 4])


def test_left_keeps_the_last_label_and_what_stands_before_it():
    assert cut_left(EXAMPLE, 4) == ([6, 7, 8, 9], [NO, NO, 8, 9])
    assert cut_left(EXAMPLE, 9) == (EXAMPLE.input_ids[:9], EXAMPLE.labels[:9])


def test_ids_and_labels_stay_side_by_side():
    for cut in (cut_left, cut_right):
        for limit in range(1, 11):
            ids, labels = cut(EXAMPLE, limit)
            assert len(ids) == len(labels) <= limit
            assert all(label in (NO, token) for token, label in zip(ids, labels, strict=True))


def test_the_first_label_trains_nothing():
    assert not is_trained([5, NO, NO])
    assert is_trained([NO, 5])
    assert not is_trained([])


def test_the_end_is_the_position_after_the_last_label():
    assert ends_at(EXAMPLE) == 9
    assert ends_at(Encoded([1, 2], [NO, NO])) == 0

from __future__ import annotations

import numpy as np
import pytest

from llmmod.data.examples.types import join, pieces


def lists(found):
    return [ids.tolist() for ids in found]


def test_blocks_are_the_documents_one_after_the_other():
    documents = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12]]
    assert lists(join(documents, 5)) == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12]]
    assert lists(join(documents, 5, drop_last=True)) == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert lists(join(documents, 4)) == lists(join(documents, 4, drop_last=True)) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


def test_a_single_remaining_token_is_left_out():
    assert lists(join([[1, 2, 3]], 2)) == [[1, 2]]


@pytest.mark.parametrize("size", [2, 3, 7, 64])
def test_nothing_is_lost_whatever_the_size(size):
    rng = np.random.default_rng(size)
    documents = [rng.integers(0, 100, rng.integers(2, 40)) for _ in range(50)]
    whole = np.concatenate(documents)
    found = list(join(documents, size))
    assert all(len(block) == size for block in found[:-1])
    joined = np.concatenate(found)
    assert joined.tolist() == whole[: len(joined)].tolist()
    assert len(whole) - len(joined) in (0, 1)
    for document in documents:
        cut = list(pieces(document, size))
        assert np.concatenate(cut).tolist() == document.tolist()
        assert max(map(len, cut)) <= size
        if size > 2:
            assert min(map(len, cut)) > 1, "a piece of one token is never trained"


@pytest.mark.parametrize(("count", "lengths"), [(1, [1]), (4, [4]), (5, [5]), (6, [4, 2]), (7, [5, 2]), (10, [5, 5]), (11, [5, 4, 2])])
def test_a_document_in_pieces(count, lengths):
    assert [len(piece) for piece in pieces(np.arange(count), 5)] == lengths

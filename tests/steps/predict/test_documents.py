"""llmmod.steps.predict.completions: the documents in rows, for every way of building rows."""

from __future__ import annotations

import numpy as np
import pytest

from llmmod.data.examples.types import join, pieces
from llmmod.steps.predict.completions import whole_documents

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17], [18, 19, 20, 21]]


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("size", [2, 3, 4, 5, 64])
@pytest.mark.parametrize("apart", [False, True])
def test_documents_are_found_again(apart, size, bos):
    written = [np.array([*([] if bos is None else [bos]), *ids, 2]) for ids in DOCUMENTS]
    rows = [piece for ids in written for piece in pieces(ids, size)] if apart else join(written, size)
    assert [ids.tolist() for ids in whole_documents(rows, eos=2, bos=bos)] == DOCUMENTS


def test_an_empty_document_is_left_out_and_one_without_its_end_counts():
    assert [ids.tolist() for ids in whole_documents([[2, 5, 2], [6]], eos=2)] == [[5], [6]]

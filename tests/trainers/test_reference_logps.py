"""llmmod.trainers.reference: log-probabilities stored with a dataset."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from llmmod.trainers.reference import DatasetWithColumns, examples_digest

ROWS = [{"a_ids": [1], "b_ids": [2, 3]}, {"a_ids": [4, 5], "b_ids": []}, {"a_ids": [6], "b_ids": [7]}]


def test_examples_with_their_numbers_in_a_split_s_order():
    dataset = Dataset.from_list(ROWS).select([2, 0])
    found = DatasetWithColumns(dataset, {"x": np.array([0.5, 1.5], dtype=np.float32)})
    assert len(found) == 2
    assert found[1] == ROWS[0] | {"x": 1.5}
    assert found.__getitems__([0, 1]) == [ROWS[2] | {"x": 0.5}, ROWS[0] | {"x": 1.5}]
    assert found.lengths == [2, 3]


def test_a_digest_is_of_the_tokens_and_their_order():
    dataset = Dataset.from_list(ROWS)
    assert examples_digest(dataset) == examples_digest(Dataset.from_list([{**row, "more": 1} for row in ROWS]))
    others = [dataset.select([1, 0, 2]), dataset.select([0, 1]), Dataset.from_list([{"a_ids": [1, 2], "b_ids": [3]}, *ROWS[1:]])]
    assert len({examples_digest(dataset), *map(examples_digest, others)}) == 4

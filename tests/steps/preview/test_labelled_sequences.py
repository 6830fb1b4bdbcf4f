from __future__ import annotations

import pytest

from llmmod.steps.preview.examples import labelled_sequences

NO = -100


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"input_ids": [1, 2], "labels": [NO, 2]}, [("", [1, 2], [NO, 2])]),
        (
            {"input_ids": [1, 2, 3], "labels": [NO, 2, 3], "seq_lengths": [2, 1]},
            [("", [1, 2], [NO, 2]), ("", [3], [3])],
        ),
        (
            {"prompt_ids": [1, 2], "chosen_ids": [3, 9], "rejected_ids": [4]},
            [("chosen", [1, 2, 3, 9], [NO, NO, 3, 9]), ("rejected", [1, 2, 4], [NO, NO, 4])],
        ),
        ({"prompt_ids": [1], "completion_ids": [2], "label": True}, [("wanted", [1, 2], [NO, 2])]),
        ({"prompt_ids": [1], "completion_ids": [2], "label": False}, [("unwanted", [1, 2], [NO, 2])]),
        ({"prompt_ids": [1, 2], "prompt": [], "answer": "x"}, [("prompt", [1, 2], [NO, NO])]),
    ],
    ids=["example", "packed", "pair", "wanted", "unwanted", "prompt"],
)
def test_labelled_sequences_of_a_row(row, expected):
    assert labelled_sequences(row) == expected

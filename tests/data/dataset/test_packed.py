"""llmmod.data.dataset.packing: packed rows and their examples."""

from __future__ import annotations

import pickle

import pytest
from datasets import Dataset

from llmmod.data.dataset.packing import PackedDataset, lengths
from llmmod.data.dataset.splits import DataReport, Splits
from llmmod.data.examples.tokenize import Counts

EXAMPLES = [{"input_ids": [n] * size, "labels": [-100] * (size - 1) + [n]} for n, size in enumerate([3, 7, 5, 5, 2], start=1)]


@pytest.fixture
def examples():
    return Dataset.from_list(EXAMPLES)


def test_rows_by_hand(examples):
    """Rows of ten tokens hold examples of 3 and 7, 5 and 5, and 2 tokens."""
    packed = PackedDataset(examples, 10)
    assert len(packed) == 3
    assert packed[0] == {
        "input_ids": [1] * 3 + [2] * 7,
        "labels": [-100, -100, 1] + [-100] * 6 + [2],
        "seq_lengths": [3, 7],
    }
    assert [row["seq_lengths"] for row in packed] == [[3, 7], [5, 5], [2]]
    assert packed[-1] == packed[2]
    assert packed.__getitems__([2, 0]) == [packed[2], packed[0]]
    assert packed.lengths == lengths(packed) == [10, 10, 2]
    assert (packed.tokens, packed.fill) == (22, pytest.approx(22 / 30))
    with pytest.raises(IndexError):
        packed[3]


def test_nothing_is_lost(examples):
    rows = [packed[row] for packed in [PackedDataset(examples, 8)] for row in range(len(packed))]
    assert sorted(token for row in rows for token in row["input_ids"]) == sorted(t for e in EXAMPLES for t in e["input_ids"])


def test_lengths_of_a_selection_are_those_of_its_rows(examples):
    assert lengths(examples) == [3, 7, 5, 5, 2]
    assert lengths(examples.select([4, 0])) == [2, 3]
    assert lengths([{"input_ids": [1, 2]}]) == [2]


def test_lengths_don_t_read_the_tokens(monkeypatch, examples):
    def refuse(*args):
        raise AssertionError("read")

    monkeypatch.setattr(Dataset, "__getitem__", refuse)
    assert lengths(examples) == [3, 7, 5, 5, 2]


def test_the_report_says_rows_and_fill(examples):
    report = DataReport("toy", "toy.json", "alpaca", rows=5, skipped=0, cutoff_len=10, train=Counts(examples=5, tokens=22))
    splits = Splits(examples, None, [], report).packed(10)
    assert len(splits.train) == 3
    assert "packed into 3 rows of 10 tokens, 73.3% of them filled" in "\n".join(splits.report.lines())


def test_a_data_loader_s_worker_gets_the_same_rows(examples):
    assert list(pickle.loads(pickle.dumps(PackedDataset(examples, 10)))) == list(PackedDataset(examples, 10))

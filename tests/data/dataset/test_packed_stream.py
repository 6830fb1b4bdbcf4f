from __future__ import annotations

import json
import random
from itertools import islice

import pytest

from llmmod.config.schema.data import DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.dataset import packing as packed_stream
from llmmod.data.dataset.load import load_splits
from llmmod.data.dataset.packing import capacity_of, pack_stream


def examples(lengths):
    """Examples of these lengths; the tokens of each repeat its number."""
    return [{"input_ids": [n] * length, "labels": [-100] + [n] * (length - 1)} for n, length in enumerate(lengths)]


def unpacked(rows):
    """The examples of packed rows, in the order of their numbers."""
    found = []
    for row in rows:
        at = 0
        for length in row["seq_lengths"]:
            found.append({name: row[name][at : at + length] for name in ("input_ids", "labels")})
            at += length
        assert at == len(row["input_ids"])
    return sorted(found, key=lambda example: example["input_ids"][0])


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_every_example_is_in_a_row_once_and_whole(monkeypatch, window):
    monkeypatch.setattr(packed_stream, "WINDOW", window)
    draw = random.Random(0)
    given = examples([draw.randint(2, 60) for _ in range(300)])
    rows = list(pack_stream(given, 64))
    assert unpacked(rows) == given
    assert max(len(row["input_ids"]) for row in rows) <= 64


def test_rows_are_full_to_98_percent_on_examples_of_mixed_length():
    draw = random.Random(0)
    lengths = [min(512, max(8, round(draw.lognormvariate(5.2, 0.7)))) for _ in range(10_000)]  # as in alpaca: a median of 180
    rows = list(pack_stream(examples(lengths), 1024))
    assert sum(lengths) / (1024 * len(rows)) >= 0.98


def test_examples_that_fit_no_other_example_do_not_wait_forever():
    rows = pack_stream(examples([6] * 5000), 10)
    assert len(list(islice(rows, packed_stream.WINDOW))) == packed_stream.WINDOW


@pytest.fixture
def load(tmp_path, monkeypatch, chatml, tiny_tokenizer):
    monkeypatch.chdir(tmp_path)

    def loaded(rows, *, kind="conversation", **conf):
        with open("x.json", "w") as file:
            json.dump(rows, file)
        conf = DatasetConf(name="mine", path="x.json", **conf)
        return load_splits(conf, kind=kind, render=chatml, tokenizer=tiny_tokenizer, seed=1, hub=HubConf())

    return loaded


QUESTIONS = [{"instruction": f"Question {n}?", "output": f"Answer {n}. " * (n % 5 + 1)} for n in range(30)]


def test_a_packed_stream_has_the_examples_of_the_same_rows(load):
    plain = load(QUESTIONS, val_size=2).train.to_list()
    splits = load(QUESTIONS, val_files="x.json", packing=True, streaming=True, cutoff_len=200)
    assert capacity_of(splits.train) == 200
    assert splits.train.column_names == ["input_ids", "labels", "seq_lengths"]
    rows, seen = iter(splits.train), []
    while len(seen) < len(QUESTIONS):
        row = next(rows)
        assert len(row["input_ids"]) <= 200
        seen += unpacked([row])
    key = lambda example: example["input_ids"]  # noqa: E731
    assert sorted(seen, key=key) == sorted(load(QUESTIONS, cutoff_len=200).train.to_list(), key=key)
    assert set(splits.eval.column_names) == {"input_ids", "labels"}, "held-out examples aren't packed"
    assert capacity_of(load(QUESTIONS, streaming=True).train) is None
    assert len(plain) == 28


def test_streamed_documents_stay_separate(load, tiny_tokenizer):
    texts = [{"text": f"Document {n}. " * (n % 4 + 1)} for n in range(20)]
    splits = load(texts, kind="document", packing=True, streaming=True, cutoff_len=30)
    expected = load(texts, kind="document", packing=True, cutoff_len=30).train.examples.to_list()
    rows, seen = iter(splits.train), []
    while len(seen) < len(expected):
        seen += unpacked([next(rows)])
    key = lambda example: example["input_ids"]  # noqa: E731
    assert sorted(seen, key=key) == sorted(expected, key=key)


def test_a_packed_stream_is_trained_as_segments(load, tiny_llama, tiny_tokenizer):
    """The collator of a run passes the boundaries of the examples to the model."""
    import torch

    from llmmod.trainers.build import choose_collator

    train = load(QUESTIONS, packing=True, streaming=True, cutoff_len=200).train
    node = {"_target_": "llmmod.data.collators.FlatteningCollator"}
    collator = choose_collator(node, model=tiny_llama, tokenizer=tiny_tokenizer, train=train)
    row = next(iter(train))
    batch = collator([row])
    assert batch["cu_seq_lens_q"].diff().tolist() == row["seq_lengths"]
    assert torch.equal(batch["input_ids"][0], torch.tensor(row["input_ids"]))

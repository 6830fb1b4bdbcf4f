"""Streamed examples: each pass is complete and in an order from the seed, and the stream restarts at its end."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from llmmod.config.schema.base import CutoffPolicy
from llmmod.data.dataset import stream as module
from llmmod.data.dataset.stream import Stream, as_dataset, shuffled
from llmmod.data.examples.tokenize import ExampleTokenizer
from llmmod.data.rows.records import RowLocation
from llmmod.errors import DataError
from llmmod.render.conversation import Conversation, Message


def placed(count, train=True):
    made = [Conversation([Message("user", f"q{n}"), Message("assistant", f"answer {n}", train)]) for n in range(count)]
    return [(RowLocation("x", number), conversation) for number, conversation in enumerate(made, start=1)]


@pytest.fixture
def stream(chatml, tiny_tokenizer):
    def made(rows, *, buffer_size=100, seed=0, skip=False, limit=512, policy=CutoffPolicy.drop):
        return Stream("mine", lambda bad: iter(rows), ExampleTokenizer(chatml, tiny_tokenizer, limit, policy), buffer_size, seed, skip)

    return made


@pytest.fixture
def answers(trained_text):
    return lambda examples: [trained_text(example).removesuffix("<|im_end|>") for example in examples]


@pytest.mark.parametrize("buffer_size", [1, 3, 10, 100])
def test_a_shuffle_loses_nothing_and_moves_items_no_further_ahead_than_its_buffer(buffer_size):
    items = list(shuffled(iter(range(50)), buffer_size, random.Random(0)))
    assert sorted(items) == list(range(50))
    assert all(item < place + buffer_size for place, item in enumerate(items))
    assert (items == list(range(50))) == (buffer_size == 1)


def test_each_pass_is_complete_and_in_a_new_order(stream, answers, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 4)
    drawn = answers(islice(stream(placed(10)), 30))
    passes = [drawn[start : start + 10] for start in (0, 10, 20)]
    assert [sorted(one) for one in passes] == [[f"answer {n}" for n in range(10)]] * 3
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_the_seed_decides_the_order(stream, answers):
    rows = placed(10)
    first, same, other = (answers(islice(stream(rows, seed=seed), 25)) for seed in (1, 1, 2))
    assert first == same != other


def test_a_buffer_of_one_keeps_the_order_of_the_rows(stream, answers):
    assert answers(islice(stream(placed(3), buffer_size=1), 5)) == ["answer 0", "answer 1", "answer 2", "answer 0", "answer 1"]


def test_a_conversation_that_cannot_be_trained_is_an_error_or_is_left_out(stream, answers, caplog):
    rows = placed(1) + placed(1, train=False)
    with pytest.raises(DataError, match="x, row 1: none of its answers is trained"):
        list(islice(stream(rows), 5))
    assert answers(islice(stream(rows, skip=True), 2)) == ["answer 0", "answer 0"]
    assert [record.message for record in caplog.records] == [
        "mine: 1 bad rows were left out (dataset.on_bad_row=skip), the first: x, row 1: none of its answers is trained. "
        "Leave such rows out, or set `train` of an answer."
    ]


@pytest.mark.parametrize("policy", [CutoffPolicy.proportional, CutoffPolicy.right, CutoffPolicy.drop])
def test_cut_examples_are_reported_once(stream, caplog, policy):
    long = Conversation([Message("user", "q"), Message("assistant", "Because. " * 99)])
    list(islice(stream([*placed(2), (RowLocation("x", 3), long)], limit=60, policy=policy), 9))
    cut = "cut, 1 of them lost the end of their answer, which isn't trained"
    said = "left out" if policy == CutoffPolicy.drop else cut
    assert [record.message for record in caplog.records] == [f"mine: 1 examples were longer than dataset.cutoff_len=60 and were {said}"]


def test_a_stream_without_examples_is_an_error_and_does_not_loop_forever(stream):
    with pytest.raises(DataError, match="mine: no example is left to train on"):
        list(islice(stream(placed(3), limit=4), 1))


def test_the_dataset_of_a_stream(stream, answers):
    dataset = as_dataset(stream(placed(3), buffer_size=1))
    assert dataset.column_names == ["input_ids", "labels"]
    assert not hasattr(dataset, "__len__")
    assert answers(islice(dataset, 4)) == ["answer 0", "answer 1", "answer 2", "answer 0"]


def test_batches_that_were_taken_are_skipped_exactly_also_past_the_end_of_the_rows(stream):
    from accelerate import skip_first_batches
    from torch.utils.data import DataLoader

    def batches(skipped):
        loader = DataLoader(as_dataset(stream(placed(5), buffer_size=3)), batch_size=2, collate_fn=list)
        return islice(skip_first_batches(loader, skipped) if skipped else loader, 9 - skipped)

    whole = list(batches(0))
    assert list(batches(7)) == whole[7:]

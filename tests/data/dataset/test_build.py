from __future__ import annotations

import pyarrow as pa
import pytest

from llmmod.config.schema.base import CutoffPolicy
from llmmod.data.dataset import build as module
from llmmod.data.dataset.build import build_dataset
from llmmod.data.examples.tokenize import Counts, ExampleTokenizer
from llmmod.data.rows.records import RowLocation
from llmmod.errors import DataError
from llmmod.render.conversation import Conversation, Message
from llmmod.render.encode import encode

NO = -100


def placed(*answers, train=True):
    made = [Conversation([Message("user", f"q{i}"), Message("assistant", text, train)]) for i, text in enumerate(answers)]
    return [(RowLocation("x.json", number), conversation) for number, conversation in enumerate(made, start=1)]


def ids_of(rows, chatml, tokenizer):
    return [encode(chatml.examples(conversation), tokenizer)[0].input_ids for _, conversation in rows]


@pytest.fixture
def tokenizing(chatml, tiny_tokenizer):
    return lambda limit=512, policy="drop": ExampleTokenizer(chatml, tiny_tokenizer, limit, CutoffPolicy(policy))


def test_examples_are_in_the_order_of_the_rows_across_batches(tokenizing, chatml, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    rows = placed("a", "bb", "ccc", "dddd", "e")
    built = build_dataset(rows, tokenizing())
    assert built.dataset["input_ids"][:] == ids_of(rows, chatml, tiny_tokenizer)
    assert built.per_record == [1] * 5
    assert built.dataset.features["labels"].feature.dtype == "int32"


def test_several_processes_build_the_same(tokenizing, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    rows = placed(*(f"answer {i}" for i in range(20)))
    alone, together = build_dataset(rows, tokenizing()), build_dataset(rows, tokenizing(), num_proc=2)
    assert together.dataset.to_dict() == alone.dataset.to_dict()
    assert together.counts == alone.counts
    assert together.per_record == alone.per_record


def test_what_was_cut_and_left_out_is_counted(tokenizing, chatml, tiny_tokenizer):
    rows = placed("a", "x" * 400, "b")
    short = [len(ids) for ids in ids_of([rows[0], rows[2]], chatml, tiny_tokenizer)]
    dropped = build_dataset(rows, tokenizing(50, "drop"))
    # An answer is one letter and <|im_end|>.
    assert dropped.counts == Counts(examples=2, dropped=1, tokens=sum(short), trained_tokens=4, longest=max(short), sources=2)
    assert dropped.per_record == [1, 0, 1]
    right = build_dataset(rows, tokenizing(50, "right"))
    assert (right.counts.examples, right.counts.cut, right.counts.ends_lost, right.counts.longest) == (3, 1, 1, 50)
    assert right.counts.tokens == sum(short) + 50


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_row_that_cannot_be_trained_is_an_error_or_is_left_out(tokenizing, num_proc):
    rows = placed("a", "b") + placed("c", train=False)
    with pytest.raises(DataError, match=r"x\.json, row 1: none of its answers is trained"):
        build_dataset(rows, tokenizing(), num_proc=num_proc)
    built = build_dataset(rows, tokenizing(), num_proc=num_proc, skip=True)
    assert built.per_record == [1, 1, 0]
    assert len(built.bad) == 1
    assert built.dataset.num_rows == 2


def test_two_datasets_have_different_fingerprints(tokenizing):
    # datasets finds cached results by the fingerprint, so two tokenizations must not have the same one.
    first, second = build_dataset(placed("a"), tokenizing()), build_dataset(placed("a"), tokenizing())
    assert first.dataset._fingerprint != second.dataset._fingerprint


def test_without_rows_the_dataset_is_empty(tokenizing):
    built = build_dataset([], tokenizing())
    assert built.dataset.num_rows == 0
    assert built.dataset.column_names == ["input_ids", "labels"]
    assert isinstance(built.dataset.data.table, pa.Table)

"""Documents in pre-training, in blocks or separate: every token is trained, including each document's end token."""

from __future__ import annotations

import copy
import json
from itertools import chain, islice

import pytest

from llmmod.config.schema.data import DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.collators import PaddingCollator
from llmmod.data.dataset.load import load_splits
from llmmod.errors import ConfigError, DataError

TEXTS = [f"Document {n} says: " + "it is so. " * (n % 5) + "<|endoftext|> 结束" * (n % 2) for n in range(1, 31)]


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(TEXTS)


def write(texts, name="x.json"):
    with open(name, "w", encoding="utf-8") as file:
        json.dump([{"text": text} for text in texts], file)


@pytest.fixture
def load(tiny_tokenizer):
    def loaded(*, tokenizer=tiny_tokenizer, verify="chatml", **conf):
        conf = DatasetConf(name="mine", **({"path": "x.json", "cutoff_len": 64} | conf))
        return load_splits(conf, kind="document", render=None, tokenizer=tokenizer, seed=1, hub=HubConf(), verify=verify)

    return loaded


@pytest.fixture
def whole(tiny_tokenizer):
    """Each document's ids; where a text spells the end token, it is tokenized as ordinary text."""

    def ids(text):
        return [*tiny_tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"], tiny_tokenizer.eos_token_id]

    return list(map(ids, TEXTS))


def test_documents_are_joined_in_blocks_each_with_its_end_and_nothing_is_lost(load, whole, tiny_tokenizer):
    splits = load()
    rows = splits.train.to_list()
    joined = list(chain.from_iterable(whole))
    assert [len(row["input_ids"]) for row in rows[:-1]] == [64] * (len(joined) // 64)
    assert list(chain.from_iterable(row["input_ids"] for row in rows)) == joined
    assert all(row["labels"] == row["input_ids"] for row in rows)
    assert joined.count(tiny_tokenizer.eos_token_id) == len(TEXTS)
    counts = splits.report.train
    assert (counts.examples, counts.tokens, counts.trained_tokens, counts.longest) == (len(rows), len(joined), len(joined), 64)
    assert splits.eval_conversations == []


def test_drop_last_block_drops_the_last_training_block_and_not_a_held_out_one(load, whole):
    count = sum(map(len, whole))
    assert count % 64 > 1, "else there is nothing to leave out"
    assert len(load(drop_last_block=True).train) == count // 64
    few = load(drop_last_block=True, val_size=1)
    assert len(few.eval) >= 1


def test_the_beginning_token_stands_where_the_tokenizer_puts_it_once_a_document(load, whole, tiny_tokenizer):
    from tokenizers import processors

    tokenizer = copy.deepcopy(tiny_tokenizer)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", bos)])
    ids = list(chain.from_iterable(row["input_ids"] for row in load(tokenizer=tokenizer).train))
    assert ids == list(chain.from_iterable([bos, *document] for document in whole))


def test_a_packed_row_has_whole_documents_or_pieces_of_long_ones(load, whole):
    splits = load(packing=True, cutoff_len=40)
    assert any(len(ids) > 40 for ids in whole)
    rows = list(splits.train)
    assert all(sum(row["seq_lengths"]) == len(row["input_ids"]) <= 40 for row in rows)
    parts = splits.train.examples["input_ids"]
    assert list(chain.from_iterable(parts)) == list(chain.from_iterable(whole))
    starts = [sum(map(len, whole[:index])) for index in range(len(whole))]
    places = [sum(map(len, parts[:index])) for index in range(len(parts))]
    assert set(starts) <= set(places), "a part never contains tokens of two documents"


def test_if_pad_is_eos_the_real_eos_keeps_its_label(load, tiny_tokenizer):
    """The original tool masked every eos if it was the pad token, too; so did TRL (issues 1623 and 2059)."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    rows = load(tokenizer=tokenizer, packing=True).train.examples.to_list()[:4]
    batch = PaddingCollator(tokenizer)(rows)
    for row, ids, labels in zip(rows, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        length = len(row["input_ids"])
        assert ids[length - 1] == labels[length - 1] == tokenizer.eos_token_id
        assert set(labels[length:]) <= {-100}


def test_a_stream_has_every_token_of_a_pass(load):
    expected = load().train
    streamed = load(streaming=True, buffer_size=1).train
    assert list(islice(streamed, len(expected))) == expected.to_list()
    assert next(islice(streamed, len(expected), None)) == expected[0], "and begins anew"


def test_several_processes_change_nothing(load, monkeypatch):
    monkeypatch.setattr("llmmod.data.dataset.build.BATCH", 4)
    monkeypatch.setattr("llmmod.data.dataset.build.CHARACTERS", 60)
    assert load(num_proc=2).train.to_list() == load(cache=False).train.to_list()


@pytest.mark.parametrize("changes", [{"packing": True}, {"drop_last_block": True}, {"cutoff_len": 32}], ids=str)
def test_settings_of_the_blocks_are_part_of_the_cache_s_key(load, caplog, changes):
    caplog.set_level("INFO")
    load()
    load(**changes)
    assert "examples from the cache" not in caplog.text
    load(mask_prompt=False)
    assert "examples from the cache" in caplog.text, "a setting that doesn't affect documents is a hit"


def test_a_mix_of_documents_takes_blocks_of_each_by_their_weights(load, tiny_tokenizer):
    write(["Another file."] * 20, "y.json")
    splits = load(path=None, mix={"a": {"path": "x.json", "weight": 2}, "b": {"path": "y.json"}})
    texts = [tiny_tokenizer.decode(row["input_ids"]) for row in splits.train]
    assert ["Another" in text for text in texts[:6]] == [False, False, True] * 2


def test_a_text_file_has_a_document_a_line(load, tiny_tokenizer):
    with open("x.txt", "w") as file:
        file.write("one\n\ntwo\n")
    ids = load(path="x.txt").train[0]["input_ids"]
    assert tiny_tokenizer.decode(ids) == "one<|endoftext|>two<|endoftext|>"


def test_a_tokenizer_without_an_end_is_refused(load, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"tokenizer.kwargs.eos_token: not set for this tokenizer, so the ends"):
        load(tokenizer=tokenizer)


def test_fewer_tokens_than_a_block(load):
    with pytest.raises(DataError, match=r"mine: no example is left to train on: the texts have \d+ tokens, a block 10000\."):
        load(cutoff_len=10_000, drop_last_block=True)

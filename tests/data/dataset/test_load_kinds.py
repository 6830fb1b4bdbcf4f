"""The columns that `dataset.*` produces for each kind of rows."""

from __future__ import annotations

import logging
import sys
from itertools import islice

import pyarrow as pa
import pytest
from datasets import Dataset
from written_rows import write

from llmmod.config.schema.base import OnBadRow
from llmmod.config.schema.data import DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.dataset.load import load_splits
from llmmod.errors import ConfigError, DataError
from llmmod.render.findings import Finding

PAIRS = [{"prompt": f"Question {n}?", "chosen": f"Right {n}.", "rejected": f"Wrong {n}!"} for n in range(1, 13)]
JUDGED = [{"prompt": f"Question {n}?", "completion": f"Answer {n}.", "label": n % 2 == 0} for n in range(1, 13)]
ASKED = [{"question": f"Question {n}?", "answer": n, "level": n if n % 2 else n / 2, "topic": "t", "tags": ["x"]} for n in range(1, 13)]
ROWS = {"preference": PAIRS, "judgement": JUDGED, "prompt": ASKED}
IDS = {"preference": ["prompt_ids", "chosen_ids", "rejected_ids"], "judgement": ["prompt_ids", "completion_ids"], "prompt": ["prompt_ids"]}


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def load(chatml, tiny_tokenizer):
    def loaded(kind, rows=None, *, render=chatml, smoke=False, verify=None, **conf):
        write(ROWS[kind] if rows is None else rows)
        conf = DatasetConf(name="mine", path="x.json", **conf)
        return load_splits(conf, kind=kind, render=render, tokenizer=tiny_tokenizer, seed=1, hub=HubConf(), smoke=smoke, verify=verify)

    return loaded


@pytest.fixture
def text(tiny_tokenizer):
    return tiny_tokenizer.decode


def said(conversations):
    return [[message.content for message in conversation.messages] for conversation in conversations]


@pytest.mark.parametrize("kind", ROWS)
def test_ids_are_mapped_lists_of_int32(load, kind):
    train = load(kind).train
    assert isinstance(train, Dataset)
    assert len(train) == 12
    assert set(IDS[kind]) <= set(train.column_names)
    assert all(train.features.arrow_schema.field(name).type == pa.list_(pa.int32()) for name in IDS[kind])
    assert type(train.data).__name__ == "MemoryMappedTable", "mapped and not loaded"


def test_pairs(load, text):
    splits = load("preference", val_size=3, verify="chatml")
    row = splits.eval[0]
    asked = splits.eval_conversations[0].messages
    number = asked[0].content.removeprefix("Question ").removesuffix("?")
    assert text(row["prompt_ids"]) == f"<|im_start|>user\nQuestion {number}?<|im_end|>\n<|im_start|>assistant\n"
    assert (text(row["chosen_ids"]), text(row["rejected_ids"])) == (f"Right {number}.<|im_end|>", f"Wrong {number}!<|im_end|>")
    assert asked[-1].content == f"Right {number}."
    assert (len(splits.train), len(splits.eval)) == (9, 3)
    counts, ids = splits.report.train, splits.train.to_dict()
    answers = sum(len(one) for name in ("chosen_ids", "rejected_ids") for one in ids[name])
    assert (counts.examples, counts.trained_tokens) == (9, answers)
    assert counts.tokens == answers + sum(map(len, ids["prompt_ids"]))


def test_judgements_and_their_prompts(load, text):
    splits = load("judgement", val_size=11, verify="chatml")
    assert splits.train.column_names == ["prompt_ids", "completion_ids", "label"]
    for row, conversation in zip(splits.eval, said(splits.eval_conversations), strict=True):
        answer = text(row["completion_ids"]).removesuffix("<|im_end|>")
        assert row["label"] == (int(answer.removeprefix("Answer ").removesuffix(".")) % 2 == 0)
        assert conversation[1:] == [answer] * row["label"], "an unwanted answer is not a reference to measure against"


def test_prompts_keep_answers_and_other_columns(load, text):
    splits = load("prompt", val_size=2, verify="chatml")
    row = splits.train[0]
    assert set(row) == {"prompt_ids", "prompt", "answer", "level", "topic"}
    assert text(row["prompt_ids"]) == f"<|im_start|>user\n{row['prompt'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert row["prompt"] == [{"role": "user", "content": f"Question {row['answer']}?"}]
    number = int(row["answer"])
    assert row["level"] == (number if number % 2 else number / 2)
    assert isinstance(row["level"], float)
    assert said(splits.eval_conversations) == [[f"Question {row['answer']}?", row["answer"]] for row in splits.eval]


def test_a_value_of_another_type_than_the_first_rows_have_is_a_bad_row(load, monkeypatch, caplog):
    monkeypatch.setattr("llmmod.data.sources.reader.HEAD", 3)
    rows = [*ASKED, {**ASKED[0], "topic": 7}]
    with pytest.raises(DataError, match=r"x.json, row 13, column 'topic': the number 7 where the first rows have a text\."):
        load("prompt", rows)
    assert len(load("prompt", rows, on_bad_row=OnBadRow.skip).train) == 12
    assert "1 bad rows were left out" in caplog.text


@pytest.mark.parametrize(("kind", "column"), [("preference", "rejected"), ("judgement", "completion"), ("prompt", "topic")])
def test_half_a_character_is_a_bad_row_of_any_kind(load, kind, column):
    rows = [*ROWS[kind], {**ROWS[kind][0], column: "\ud83d"}]
    with pytest.raises(DataError, match=rf"x.json, row 13, column '{column}': .*half of a character"):
        load(kind, rows)


def test_a_rehearsal_finds_the_types_of_columns_where_the_run_does(load, caplog):
    rows = [*ASKED, *({**row, "topic": 7} for row in ASKED)]
    columns = [set(load("prompt", rows, smoke=smoke).train[0]) for smoke in (True, False)]
    assert columns == [{"prompt_ids", "prompt", "answer", "level"}] * 2
    told = "reward functions don't get columns with values of different types: 'topic' is of different kinds in mine"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [told] * 2  # other tests may turn on INFO


@pytest.mark.parametrize("kind", ROWS)
def test_a_stream_gives_the_same_rows(load, kind):
    expected = load(kind).train
    streamed = load(kind, streaming=True, buffer_size=1)
    assert list(islice(streamed.train, 12)) == expected.to_list()
    assert streamed.train.features == expected.features


@pytest.mark.parametrize("kind", ROWS)
def test_bad_rows_are_found_at_once_or_left_out_and_counted(load, kind, caplog):
    first = next(iter(ROWS[kind][0]))
    rows = [*ROWS[kind][:5], {**ROWS[kind][5], first: None}, *ROWS[kind][6:]]
    with pytest.raises(DataError, match=f"x.json, row 6, column '{first}': null where a text or a list of turns is expected"):
        load(kind, rows)
    splits = load(kind, rows, on_bad_row=OnBadRow.skip)
    assert (len(splits.train), splits.report.skipped) == (11, 1)
    assert f"1 bad rows were left out (dataset.on_bad_row=skip), the first: x.json, row 6, column '{first}'" in caplog.text


@pytest.mark.parametrize("kind", ROWS)
def test_processes_and_rehearsals(load, kind, monkeypatch):
    monkeypatch.setattr("llmmod.data.dataset.build.BATCH", 4)
    assert load(kind, num_proc=2).train.to_list() == load(kind, cache=False).train.to_list()
    assert (len(load(kind, smoke=True, val_size=3).train), len(load(kind, smoke=True, val_size=3).eval)) == (8, 4)


def test_the_kind_is_part_of_the_cache_s_key(load, caplog):
    rows = [{"prompt": f"Q{n}", "completion": f"A{n}", "label": True} for n in range(4)]
    caplog.set_level(logging.INFO)
    columns = [load(kind, rows).train.column_names for kind in ("judgement", "prompt", "conversation", "judgement")]
    assert columns == [
        ["prompt_ids", "completion_ids", "label"],
        ["prompt_ids", "prompt", "answer", "label"],
        ["input_ids", "labels"],
        columns[0],
    ]
    assert caplog.text.count("examples from the cache") == 1


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("preference", JUDGED, ", which fits the format kto, a judgement a row"),
        ("judgement", PAIRS, ", which fits the format preference, a preference a row"),
        ("conversation", [{"prompt": "q", "chosen": "a", "rejected": "b"}], "which fits the format preference, a preference a row"),
        ("preference", [{"instruction": "q", "output": "a"}], "which fits the format alpaca, a conversation a row"),
        (
            "prompt",
            [{"text": "t"}],
            "which fits the format text, a document a row. prompt needs a column for 'prompt' (usually instruction or",
        ),
    ],
)
def test_rows_of_another_kind_are_refused_and_their_kind_is_named(load, kind, rows, message):
    with pytest.raises(ConfigError) as error:
        load(kind, rows)
    assert f"'auto' can't find a {kind} in the rows" in str(error.value)
    assert message in str(error.value)


def test_a_named_format_of_another_kind_is_refused(load):
    with pytest.raises(ConfigError, match=r"the records of 'alpaca' are of kind conversation, not preference\. Allowed: auto, preference"):
        load("preference", format="alpaca")


OWN = """
def preference(row): return {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}
def judgement(row): return {"prompt": row["prompt"], "completion": row["completion"], "label": row["label"]}
def prompt(row): return {"prompt": row["question"], "answer": row["answer"], "level": row["level"], "topic": row["topic"]}
def wrong(row): return "a text"
"""


@pytest.mark.parametrize("kind", ROWS)
def test_a_format_of_the_user_s_own_for_each_kind(load, kind, tmp_path, monkeypatch):
    (tmp_path / f"my_{kind}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLMMOD_ALLOW", f"my_{kind}")
    expected = load(kind).train.to_list()
    own = load(kind, format={"_target_": f"my_{kind}.{kind}"}).train.to_list()
    # A function may rank more than two answers, so that its rows have a weight.
    assert [row.pop("weight", 1.0) for row in own] == [1.0] * len(own)
    assert own == expected
    with pytest.raises(DataError, match=rf"x.json, row 1: my_{kind}.wrong returned the text 'a text' where an object with prompt"):
        load(kind, format={"_target_": f"my_{kind}.wrong"})
    sys.modules.pop(f"my_{kind}")


@pytest.mark.parametrize("kind", ROWS)
def test_the_certificate_checks_the_prompt_with_each_answer(load, kind, monkeypatch, chatml):
    seen = {}

    def certify(render, tokenizer, conversations):
        seen.update(conversations)
        return [Finding("labels", "wrong", "x")]

    monkeypatch.setattr("llmmod.data.dataset.load.certify", certify)
    with pytest.raises(ConfigError, match="wrong"):
        load(kind, verify="chatml")
    assert len(seen) == (16 if kind == "preference" else 8)
    if kind == "preference":
        assert said([seen["x.json, row 2"], seen["x.json, row 2, answer 2"]]) == [["Question 2?", "Right 2."], ["Question 2?", "Wrong 2!"]]


@pytest.mark.parametrize(("label", "told"), [(True, "bad (undesirable)"), (False, "good (desirable)"), (None, "")], ids=str)
def test_answers_that_are_all_good_or_all_bad_are_reported(load, caplog, label, told):
    rows = JUDGED if label is None else [row | {"label": label} for row in JUDGED]
    load("judgement", rows)
    found = [message for message in caplog.messages if "the label of every training answer" in message]
    expected = f"mine: the label of every training answer is {str(label).lower()}, so {told} answers to learn from are missing"
    assert found == ([expected] if told else [])


def test_columns_that_nothing_reads_are_named(load, caplog):
    caplog.set_level(logging.INFO)
    load("preference", [row | {"id": 1, "source ": "x"} for row in PAIRS])
    assert "columns that are not read: id, 'source ' (with a space at the end)" in caplog.messages
    load("preference", [row | {"id": 1} for row in PAIRS], streaming=True)
    assert "columns that are not read: id" in caplog.messages
    caplog.clear()
    load("prompt")  # reward functions get columns of numbers and texts, but not of lists
    load("judgement")
    assert [message for message in caplog.messages if "not read" in message] == ["columns that are not read: tags"]

from __future__ import annotations

import csv
import json
import logging
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader
from written_rows import write

from llmmod.config.schema.base import CutoffPolicy, OnBadRow
from llmmod.config.schema.data import ColumnsConf, DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.dataset import build as build_module
from llmmod.data.dataset.load import load_splits
from llmmod.errors import ConfigError, DataError

ROWS = [{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in range(1, 31)]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def load(chatml, tiny_tokenizer):
    def loaded(path="x.json", *, smoke=False, seed=42, **conf):
        conf = DatasetConf(name="mine", path=path, **conf)
        return load_splits(conf, render=chatml, tokenizer=tiny_tokenizer, seed=seed, hub=HubConf(), smoke=smoke)

    return loaded


def answers(conversations):
    return [conversation.messages[-1].content for conversation in conversations]


def test_each_row_becomes_an_example_whose_answer_is_trained(load, trained_text):
    write(ROWS)
    splits = load()
    assert splits.train.column_names == ["input_ids", "labels"]
    assert [trained_text(example) for example in splits.train] == [f"Answer {n}.<|im_end|>" for n in range(1, 31)]
    assert all(label in (-100, token) for e in splits.train for label, token in zip(e["labels"], e["input_ids"], strict=True))
    assert splits.eval is None
    assert splits.eval_conversations == []


def test_packed_examples_are_all_there_and_those_held_out_are_not_packed(load, caplog):
    write(ROWS)
    caplog.set_level(logging.INFO)
    plain, packed = load(val_size=5, cutoff_len=200), load(val_size=5, cutoff_len=200, packing=True)
    assert len(packed.train) < 25 == len(plain.train)
    taken = sorted(number for row in range(len(packed.train)) for number in packed.train.numbers(row))
    assert taken == list(range(25))
    assert max(packed.train.lengths) <= 200
    assert packed.eval.to_dict() == plain.eval.to_dict()
    assert f"packed into {len(packed.train)} rows of 200 tokens, {packed.train.fill:.1%} of them filled" in caplog.messages


def test_every_kind_of_file_gives_the_same_examples(load):
    expected = load(write(ROWS)).train.to_dict()
    write("\n".join(json.dumps(row) for row in ROWS), "x.jsonl")
    with open("x.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, "x.parquet")
    with pa.ipc.new_file("x.arrow", table.schema) as file:
        file.write_table(table)
    for name in ("x.jsonl", "x.csv", "x.parquet", "x.arrow"):
        assert load(name).train.to_dict() == expected, name


def without(column, number):
    return [{key: value for key, value in row.items() if (key, n) != (column, number)} for n, row in enumerate(ROWS, start=1)]


@pytest.mark.parametrize(
    ("text", "conf", "message"),
    [
        ("Dear reader,", {}, "x.json, row 1: not JSON: Expecting value (line 1, character 1)."),
        ("", {}, "x.json: the file is empty."),
        ("[]", {}, "x.json: doesn't have rows."),
        (json.dumps(without("output", 17), indent=2), {}, "x.json, row 17, column 'output': missing; the row has instruction."),
        ("\n".join(map(json.dumps, without("output", 17))), {}, "x.json, row 17, column 'output': missing; the row has instruction."),
        (json.dumps([*ROWS[:16], {**ROWS[16], "output": ""}]), {}, "x.json, row 17, column 'output': empty."),
        (
            "\n".join([*map(json.dumps, ROWS[:16]), '{"instruction": "x"']),
            {},
            "x.json, row 17: not JSON: Expecting ',' delimiter at character 20 of the line.",
        ),
        (json.dumps([1, 2]), {}, "x.json, row 1: the number 1 where an object with columns is expected."),
        (
            json.dumps(ROWS),
            {"columns": ColumnsConf(prompt="question", response="output"), "format": "alpaca"},
            "dataset.columns.prompt: 'question' is not a column of x.json. Its columns: instruction, output.",
        ),
        (json.dumps(ROWS), {"val_size": 30}, "dataset.val_size: 30 of 30 rows leaves 0 to train on and 30 to validate with."),
        (json.dumps(ROWS), {"val_size": 0.1, "val_files": "x.json"}, "dataset.val_size and dataset.val_files: more than one way to hold"),
        (json.dumps(ROWS), {"val_files": "none.json"}, "dataset.val_files: no such file or directory: 'none.json'"),
        (json.dumps(ROWS), {"cutoff_len": 8}, "x.json, row 1: dataset.cutoff_len=8 tokens is too short for its prompt and an answer: "),
        (
            json.dumps(ROWS),
            {"cutoff_len": 8, "cutoff_policy": CutoffPolicy.drop},
            "mine: no example is left to train on: 30 are longer than dataset.cutoff_len=8.",
        ),
    ],
    ids=[
        "no-json", "empty", "no-rows", "row-17-lacks-the-column", "line-17-lacks-the-column", "row-17-is-empty", "line-17-is-broken",
        "no-objects", "column", "val_size", "two-ways", "val_files", "cutoff", "all-dropped",
    ],
)  # fmt: skip
def test_bad_input_is_reported_in_one_message_with_exit_code_2(load, text, conf, message):
    write(text)
    with pytest.raises((ConfigError, DataError)) as error:
        load(**conf)
    assert str(error.value).startswith(message)
    assert error.value.exit_code == 2
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_half_a_character_is_a_bad_row(load, name):
    """Scraped texts contain half an emoji at times; the tokenizer would raise a TypeError for it."""
    rows = [*map(json.dumps, ROWS), '{"instruction": "Why?", "output": "Because \\ud83d"}']
    write("\n".join(rows) if name == "x.jsonl" else f"[{','.join(rows)}]", name)
    with pytest.raises(DataError) as error:
        load(name)
    assert str(error.value) == f"{name}, row 31, column 'output': \\ud83d is half of a character, so it isn't text."
    assert len(load(name, on_bad_row=OnBadRow.skip).train) == 30


def test_bad_rows_are_found_before_the_first_is_tokenized(load, monkeypatch):
    monkeypatch.setattr("llmmod.data.dataset.builder.build_dataset", None)
    write(without("output", 30))
    with pytest.raises(DataError, match="row 30"):
        load()


def test_bad_rows_are_skipped_where_asked_for_and_counted(load, caplog):
    rows = [json.dumps(row) for row in ROWS]
    rows[4] = rows[4][:-5]
    rows[7] = json.dumps({"instruction": "No answer"})
    write("\n".join(rows), "x.jsonl")
    splits = load("x.jsonl", on_bad_row=OnBadRow.skip)
    assert len(splits.train) == 28
    assert splits.report.skipped == 2
    first = "x.jsonl, row 5: not JSON: "
    assert splits.report.reasons[0].startswith(first)
    assert f"2 bad rows were left out (dataset.on_bad_row=skip), the first: {first}" in caplog.text


def test_where_every_row_is_bad_skipping_does_not_help(load):
    write([{"instruction": "No answer", "output": ""}] * 3)
    with pytest.raises(DataError) as error:
        load(on_bad_row=OnBadRow.skip)
    assert str(error.value) == "x.json: none of its 3 rows can be used; the first: x.json, row 1, column 'output': empty."


def test_validation_is_held_out_by_the_seed_and_in_the_order_of_the_rows(load, trained_text):
    write(ROWS)
    one, same, other = load(val_size=5), load(val_size=5), load(val_size=5, seed=7)
    assert (len(one.train), len(one.eval)) == (25, 5)
    assert one.eval.to_dict() == same.eval.to_dict()
    assert one.eval.to_dict() != other.eval.to_dict()
    evaluated = [trained_text(example).removesuffix("<|im_end|>") for example in one.eval]
    assert evaluated == answers(one.eval_conversations)
    assert evaluated == [row["output"] for row in ROWS if row["output"] in evaluated]
    assert not set(evaluated) & {trained_text(example).removesuffix("<|im_end|>") for example in one.train}


def test_the_datasets_own_seed_comes_before_the_runs(chatml, tiny_tokenizer):
    write(ROWS)
    drawn = [
        load_splits(
            DatasetConf(name="mine", path="x.json", val_size=5, seed=own), render=chatml, tokenizer=tiny_tokenizer, seed=run, hub=HubConf()
        ).eval.to_dict()
        for own, run in [(3, 1), (3, 2), (None, 3)]
    ]
    assert drawn[0] == drawn[1] == drawn[2]


def test_validation_from_files_of_its_own(load):
    write(ROWS)
    write(ROWS[:3], "held.jsonl")
    splits = load(val_files="held.jsonl")
    assert len(splits.train) == 30
    assert answers(splits.eval_conversations) == ["Answer 1.", "Answer 2.", "Answer 3."]
    assert splits.report.lines()[0].startswith("mine: 33 rows of x.json and held.jsonl, read as alpaca")


def test_validation_from_a_split_of_its_own(load, tmp_path):
    (tmp_path / "both").mkdir()
    write(ROWS, "both/train.json")
    write(ROWS[:2], "both/test.json")
    splits = load("both", val_split="test")
    assert (len(splits.train), len(splits.eval)) == (30, 2)


def test_dropped_validation_examples_are_dropped_from_its_conversations_too(load):
    write(ROWS)
    write([ROWS[0], {"instruction": "q", "output": "long " * 100}, ROWS[1]], "held.json")
    splits = load(val_files="held.json", cutoff_len=60, cutoff_policy=CutoffPolicy.drop)
    assert len(splits.eval) == 2
    assert answers(splits.eval_conversations) == ["Answer 1.", "Answer 2."]
    assert splits.report.dropped == 1


def test_max_samples_takes_rows_from_the_start(load):
    write([*ROWS[:10], {"broken": 1}])
    assert len(load(max_samples=4).train) == 4
    assert len(load(max_samples=4, val_size=1).train) == 3


@pytest.mark.parametrize(
    ("conf", "sizes"),
    [({}, (8, 0)), ({"val_size": 0.1}, (8, 4)), ({"val_files": "x.json"}, (8, 4)), ({"max_samples": 5, "val_size": 2}, (4, 1))],
)
def test_a_rehearsal_takes_a_few_rows(load, conf, sizes):
    write(ROWS)
    splits = load(smoke=True, **conf)
    assert (len(splits.train), len(splits.eval or [])) == sizes


@pytest.mark.parametrize("smoke", [False, True], ids=["run", "rehearsal"])
@pytest.mark.parametrize(
    ("conf", "found"),
    [
        ({"val_size": 2000}, "2000 of 30 rows leaves 0"),
        ({"val_size": 30}, "30 of 30 rows leaves 0"),
        ({"val_size": 20, "max_samples": 15}, "20 of 15 rows leaves 0"),
        ({"val_size": 30, "streaming": True}, "30 of 30 rows leaves 0"),
        ({"val_size": 2.5}, "2.5"),
        ({"mix": {"a": {"path": "x.json"}, "b": {"path": "x.json", "val_size": 50}}, "path": None}, "50 of 30 rows leaves 0"),
    ],
    ids=["more", "all", "more than the samples", "all of a stream", "not a number of rows", "more of one in a mix"],
)
def test_holding_out_all_rows_or_more_is_refused(load, conf, found, smoke):
    write(ROWS)
    with pytest.raises(ConfigError) as error:
        load(**conf, smoke=smoke)
    assert "val_size" in str(error.value)
    assert found in str(error.value)


@pytest.mark.parametrize("conf", [{}, {"streaming": True}], ids=["rows", "stream"])
def test_a_rehearsal_counts_as_many_rows_as_are_held_out(load, conf, monkeypatch):
    monkeypatch.setattr("llmmod.data.sources.reader.SURVEYED", 10)
    write(ROWS)
    assert len(load(smoke=True, val_size=29, **conf).eval) == 4
    with pytest.raises(ConfigError, match="30 of 30 rows"):
        load(smoke=True, val_size=30, **conf)


@pytest.mark.parametrize("conf", [{}, {"val_files": "good.json"}, {"streaming": True}], ids=["rows", "files", "stream"])
def test_a_rehearsal_finds_a_bad_row_that_it_would_not_train_on(load, conf):
    write(without("output", 17))
    write(ROWS, "good.json")
    with pytest.raises(DataError, match="row 17, column 'output': missing"):
        load(smoke=True, **conf)
    skipping = load(smoke=True, on_bad_row=OnBadRow.skip, **conf)
    assert skipping.report.skipped == 1
    assert len({tuple(example["input_ids"]) for example in islice(skipping.train, 20)}) == 8


def test_a_rehearsal_finds_a_bad_row_to_validate_with(load):
    write(ROWS)
    write(without("output", 17), "held.json")
    with pytest.raises(DataError, match="row 17, column 'output'"):
        load(smoke=True, val_files="held.json")


def test_a_rehearsal_looks_at_no_more_rows_than_the_run_would_use(load, monkeypatch):
    write(without("output", 17))
    assert len(load(smoke=True, max_samples=16).train) == 8
    monkeypatch.setattr("llmmod.data.sources.reader.SURVEYED", 16)
    assert len(load(smoke=True).train) == 8


def test_a_system_text_of_the_configuration_is_for_rows_that_have_none(load):
    write([{**ROWS[0], "system": "Mine."}, ROWS[1]])
    write([{**ROWS[0], "system": "Mine."}, ROWS[1]], "held.json")
    assert [made.system for made in load(val_files="held.json", system="Yours.").eval_conversations] == ["Mine.", "Yours."]
    assert [made.system for made in load(val_files="held.json").eval_conversations] == ["Mine.", None]


def test_the_system_column_is_each_rows_own(load, tiny_tokenizer):
    write([{**row, "system": f"System {n}."} for n, row in enumerate(ROWS)])
    texts = [tiny_tokenizer.decode(example["input_ids"]) for example in load().train]
    assert all(text.startswith(f"<|im_start|>system\nSystem {n}.<|im_end|>") for n, text in enumerate(texts))
    assert all(text.count("System ") == 1 for text in texts)


def test_no_terminator_is_lost_at_a_cutoff_and_no_assistant_marker(load, tiny_tokenizer, trained_text):
    write([{"instruction": "Why? " * n, "output": "Because. " * m} for n, m in [(1, 200), (200, 1), (200, 200), (3, 3)]])
    splits = load(cutoff_len=80)
    for example in splits.train:
        assert len(example["input_ids"]) <= 80
        assert "<|im_start|>assistant\nBecause." in tiny_tokenizer.decode(example["input_ids"])
        assert tiny_tokenizer.decode(example["input_ids"]).endswith("<|im_end|>")
    # The terminator is trained only if the answer is whole, that is, if only the question was cut.
    assert [trained_text(example).endswith("<|im_end|>") for example in splits.train] == [False, True, False, True]
    assert (splits.report.cut, splits.report.train.ends_lost) == (3, 2)


def test_two_answers_in_one_column_are_a_bad_row(load):
    write([{"instruction": "q", "output": ["good", "bad"]}])
    with pytest.raises(DataError, match="column 'output': a list of 2 where a text is expected"):
        load()


def test_the_report(load, caplog):
    write(ROWS)
    with caplog.at_level(logging.INFO):
        report = load(val_size=0.1).report
    assert (report.rows, report.train.examples, report.eval.examples, report.skipped, report.cut) == (30, 27, 3, 0, 0)
    assert 0 < report.trained_tokens < report.tokens
    assert report.lines()[0] == "mine: 30 rows of x.json, read as alpaca (found by the columns): prompt=instruction, response=output"
    assert report.lines()[0] in caplog.text


@pytest.mark.parametrize("policy", [CutoffPolicy.proportional, CutoffPolicy.right])
def test_cut_examples_are_reported(load, caplog, policy):
    write([*ROWS, {"instruction": "q", "output": "Because. " * 99}])
    load(cutoff_len=60, cutoff_policy=policy)
    said = "1 examples were longer than dataset.cutoff_len=60 and were cut, 1 of them lost the end of their answer"
    assert said in caplog.text


def test_more_processes_change_nothing(load, monkeypatch):
    monkeypatch.setattr(build_module, "BATCH", 7)
    write(ROWS)
    assert load(num_proc=2, val_size=4).train.to_dict() == load(val_size=4).train.to_dict()


def streamed(load, **conf):
    return load(streaming=True, buffer_size=1, **conf)


def test_streamed_examples_are_those_of_the_same_rows_over_and_over(load):
    write(ROWS)
    expected = load().train.to_list()
    assert list(islice(streamed(load).train, 33)) == [*expected, *expected[:3]]


def test_a_stream_is_read_in_a_worker_of_a_data_loader(load, monkeypatch):
    """A tokenizer that has encoded in threads hangs in a fork, which doesn't have these threads; so does torch (libgomp)."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    write(ROWS)
    expected = load().train.to_list()

    def threads_used():
        return bool((torch.ones(2**20) == 1).all())

    def collate(rows):
        assert threads_used()
        return rows[0]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert threads_used()
        loader = DataLoader(streamed(load).train, num_workers=1, collate_fn=collate, timeout=60)
        assert list(islice(loader, 3)) == expected[:3]
    finally:
        torch.set_num_threads(before)


def test_a_stream_holds_out_the_first_rows(load, trained_text):
    write(ROWS)
    splits = streamed(load, val_size=5, max_samples=8)
    assert answers(splits.eval_conversations) == [f"Answer {n}." for n in range(1, 6)]
    assert len(splits.eval) == 5
    trained = [trained_text(example).removesuffix("<|im_end|>") for example in islice(splits.train, 4)]
    assert trained == ["Answer 6.", "Answer 7.", "Answer 8.", "Answer 6."]


def test_a_stream_is_shuffled_by_the_seed(load):
    write(ROWS)
    first, same, other = (list(islice(load(streaming=True, seed=seed).train, 30)) for seed in (1, 1, 2))
    assert first == same != other


def test_a_stream_may_have_files_of_its_own_to_validate_with(load):
    write(ROWS)
    write(ROWS[:3], "held.jsonl")
    splits = streamed(load, val_files="held.jsonl")
    assert answers(splits.eval_conversations) == ["Answer 1.", "Answer 2.", "Answer 3."]
    assert list(islice(splits.train, 30)) == load().train.to_list()


def test_the_message_about_a_stream(load, caplog):
    write(ROWS)
    with caplog.at_level(logging.INFO):
        streamed(load, val_size=2)
    read_as = "alpaca (found by the columns): prompt=instruction, response=output"
    said = f"mine: rows of x.json, read as {read_as}, while training; 2 to validate with"
    assert said in caplog.messages


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"val_size": 0.1}, "dataset.val_size: 0.1 is a fraction, but the length of a streamed dataset is unknown."),
        ({"val_size": 30}, "dataset.val_size: 30 of 30 rows leaves 0 to train on."),
    ],
    ids=["fraction", "all"],
)
def test_what_cannot_be_held_out_of_a_stream(load, conf, message):
    write(ROWS)
    with pytest.raises(ConfigError) as error:
        streamed(load, **conf)
    assert str(error.value).startswith(message)


def test_a_bad_row_among_the_first_is_an_error_at_once(load):
    write(without("output", 17))
    with pytest.raises(DataError, match="row 17, column 'output': missing"):
        streamed(load)


def test_a_later_bad_row_is_an_error_when_it_is_read_or_is_left_out(load, monkeypatch):
    monkeypatch.setattr("llmmod.data.dataset.stream.CHECKED", 5)
    monkeypatch.setattr("llmmod.data.dataset.stream.BATCH", 5)
    write(without("output", 17))
    with pytest.raises(DataError, match="row 17, column 'output': missing"):
        list(islice(streamed(load).train, 20))
    assert len(list(islice(streamed(load, on_bad_row=OnBadRow.skip).train, 40))) == 40


def test_a_rehearsal_streams_a_few_rows(load):
    write(ROWS)
    splits = streamed(load, smoke=True, val_size=20)
    assert len(splits.eval) == 4
    assert len({tuple(example["input_ids"]) for example in islice(splits.train, 50)}) == 8

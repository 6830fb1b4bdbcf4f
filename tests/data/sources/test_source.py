from __future__ import annotations

import json

import pytest
from datasets import Dataset, DatasetDict

from llmmod.config.schema.model import HubConf
from llmmod.data.sources.open import open_source
from llmmod.data.sources.source import Files, take_split
from llmmod.errors import ConfigError, DataError


def write(path, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps({"n": n}) for n in numbers))
    return path


def numbers(source):
    return [row["n"] for _, row in source]


def opened(path=None, **arguments):
    return open_source(path, hub=HubConf(), **arguments)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("train", range(10)),
        ("train[:3]", range(3)),
        ("train[-2:]", [8, 9]),
        ("train[:10%]", [0]),
        ("train[50%:]", range(5, 10)),
        ("train[8:]+train[:1]", [8, 9, 0]),
        ("train+test", [*range(10), 20, 21]),
        ("test[1:]+train[:1]", [21, 0]),
    ],
)  # as in datasets.ReadInstruction
def test_splits_and_slices(tmp_path, spec, expected):
    splits = {"train": Files([write(tmp_path / "a.jsonl", range(10))]), "test": Files([write(tmp_path / "b.jsonl", [20, 21])])}
    assert numbers(take_split(splits, spec)) == list(expected)


def test_a_row_of_a_slice_keeps_its_number_in_the_file(tmp_path):
    splits = {"train": Files([write(tmp_path / "a.jsonl", range(10))])}
    assert [str(place) for place, _ in take_split(splits, "train[7:9]")] == ["a.jsonl, row 8", "a.jsonl, row 9"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("test", "dataset.split: 'test' does not exist. Known: train."),
        (
            "train[:x]",
            "dataset.split: 'train[:x]' is not a split. Allowed: a split, a slice of one as train[:10%] or train[10:20], several "
            "joined by +.",
        ),
    ],
)
def test_a_wrong_split_is_reported(tmp_path, spec, message):
    with pytest.raises(ConfigError) as error:
        take_split({"train": Files([write(tmp_path / "a.jsonl", [1])])}, spec)
    assert str(error.value) == message


def test_what_a_configuration_can_name(tmp_path):
    write(tmp_path / "a.jsonl", [1])
    write(tmp_path / "b.jsonl", [2])
    write(tmp_path / "c.data", [3])
    assert numbers(opened("a.jsonl")) == [1]
    assert numbers(opened("*.jsonl")) == [1, 2]
    assert numbers(opened(data_files="a.jsonl")) == [1]
    assert numbers(opened(data_files=["b.jsonl", str(tmp_path / "a.jsonl")])) == [2, 1]
    assert numbers(opened("json", data_files="c.data")) == [3]
    assert numbers(opened(".", data_files="b.jsonl")) == [2]
    assert numbers(opened(data_files={"train": "a.jsonl", "test": "b.jsonl"}, split="test")) == [2]
    assert len(list(opened(data_files="pkg://llmmod.demo/llmmod_qa.jsonl"))) > 100


def test_the_files_of_a_directory_are_split_by_their_names(tmp_path):
    write(tmp_path / "one/train.jsonl", [1])
    write(tmp_path / "one/test.jsonl", [2])
    write(tmp_path / "two/b.jsonl", [4])
    write(tmp_path / "two/a.jsonl", [3])
    (tmp_path / "two/README.md").write_text("no data")
    assert numbers(opened("one")) == [1]
    assert numbers(opened("one", split="test")) == [2]
    assert numbers(opened("two")) == [3, 4]
    assert numbers(opened(data_files="two")) == [3, 4]


def test_a_dataset_saved_to_disk(tmp_path):
    Dataset.from_list([{"n": 1}, {"n": 2}]).save_to_disk(tmp_path / "flat")
    deep = {"train": Dataset.from_list([{"n": 3}]), "test": Dataset.from_list([{"n": n} for n in range(3000)])}
    DatasetDict(deep).save_to_disk(tmp_path / "deep")
    assert numbers(opened("flat")) == [1, 2]
    assert numbers(opened("deep")) == [3]
    assert numbers(opened("deep", split="test[-2:]")) == [2998, 2999]
    assert str(next(iter(opened("flat")))[0]) == "flat [train], row 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "dataset.path: is not set. Set dataset.path or dataset.data_files."),
        ({"path": "json"}, "dataset.path: 'json' reads files, but files are not given. Set dataset.data_files."),
        ({"path": "none.json"}, "dataset.path: no such file or directory: 'none.json' ({here}/none.json). Did you mean 'one.json'?"),
        ({"path": "./none"}, "dataset.path: no such file or directory: './none' ({here}/none)."),
        ({"data_files": "none/*.json"}, "dataset.data_files: no file matches 'none/*.json' ({here}/none/*.json)."),
        ({"data_files": 3}, "dataset.data_files: the number 3. Allowed: a path, a glob, or a list of them."),
        (
            {"path": "one.json", "data_files": "x"},
            "dataset.path: 'one.json' is a file, but dataset.data_files names others. Leave one of them out, e.g. dataset.data_files=null, "
            "or start with dataset=json or dataset=hub.",
        ),
        (
            {"path": "someone/data", "data_files": "pkg://llmmod.demo/x.jsonl"},
            "dataset.path: 'someone/data' is on the hub, but dataset.data_files is not: pkg://llmmod.demo/x.jsonl. "
            "Leave one of them out, e.g. dataset.data_files=null, or start with dataset=json or dataset=hub.",
        ),
        ({"path": "empty"}, "dataset.path: empty doesn't have data files. Known: json, jsonl, ndjson, csv, tsv, parquet, arrow, txt."),
        (
            {"path": "one.xyz"},
            "dataset.path: one.xyz is of an unknown kind. Known: json, jsonl, ndjson, csv, tsv, parquet, arrow, txt. "
            "Name its kind: dataset.path=json dataset.data_files=….",
        ),
    ],
    ids=["nothing", "builder", "file", "directory", "glob", "number", "two", "hub-and-package", "empty-directory", "kind"],
)
def test_a_missing_source_is_reported_with_its_key(tmp_path, arguments, message):
    write(tmp_path / "one.json", [1])
    write(tmp_path / "one.xyz", [1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as error:
        opened(**arguments)
    assert str(error.value) == message.format(here=tmp_path)


def test_a_broken_saved_dataset_is_reported(tmp_path):
    Dataset.from_list([{"n": 1}]).save_to_disk(tmp_path / "flat")
    (tmp_path / "flat/state.json").write_text("{")
    with pytest.raises(DataError, match="flat: a dataset saved to disk that can't be read"):
        opened("flat")

"""Datasets of a hub, streamed and downloaded: `datasets` itself requests them from a server on this machine."""

from __future__ import annotations

import json
from itertools import islice

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants

from llmmod.config.schema.base import OnBadRow
from llmmod.config.schema.data import DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.dataset.load import load_splits
from llmmod.data.sources.open import open_source
from llmmod.errors import ConfigError, DataError
from tests.support.hub import serving

ROWS = [{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in range(1, 31)]
BAD = [*ROWS[:16], {"instruction": "Question 17?"}, *ROWS[17:]]


def write(folder, rows, name="train.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The requests to a hub that has `someone/data`, with the splits train and test, and two datasets with a bad row."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "hub/someone/data", ROWS)
    write(tmp_path / "hub/someone/data", ROWS[:3], "test.jsonl")
    write(tmp_path / "hub/someone/bad", BAD)
    write(tmp_path / "hub/someone/broken", [*ROWS[:16], '{"instruction": "Question', *ROWS[16:]])
    with serving(tmp_path / "hub") as (address, paths):
        huggingface_hub.close_session()
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "files"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        yield paths
    huggingface_hub.close_session()


@pytest.fixture
def load(asked, tmp_path, chatml, tiny_tokenizer):
    def loaded(path="someone/data", *, smoke=False, **conf):
        conf = DatasetConf(name="mine", path=path, **{"streaming": True, "buffer_size": 1, **conf})
        hub = HubConf(cache_dir=str(tmp_path / "tables"))
        return load_splits(conf, render=chatml, tokenizer=tiny_tokenizer, seed=0, hub=hub, smoke=smoke)

    return loaded


def answers(conversations):
    return [int(conversation.messages[-1].content.split()[1][:-1]) for conversation in conversations]


@pytest.fixture
def trained(trained_text):
    return lambda examples: [int(trained_text(example).split()[1].partition(".")[0]) for example in examples]


def test_streamed_rows_are_those_that_are_downloaded(load, trained):
    assert trained(load(streaming=False).train) == [*range(1, 31)]
    assert trained(islice(load().train, 32)) == [*range(1, 31), 1, 2]


@pytest.mark.parametrize(
    ("conf", "expected", "held"),
    [
        ({"val_size": 3}, [*range(4, 31), 4], [1, 2, 3]),
        ({"val_split": "test"}, [*range(1, 31), 1], [1, 2, 3]),
        ({"max_samples": 4, "val_size": 1}, [2, 3, 4, 2], [1]),
        ({"split": "train[10:13]"}, [11, 12, 13, 11], []),
        ({"split": "train[28:]+test", "val_split": "train[:2]"}, [29, 30, 1, 2, 3, 29], [1, 2]),
        ({"path": "someone/bad", "on_bad_row": OnBadRow.skip, "split": "train[15:18]"}, [16, 18, 16], []),
    ],
    ids=["take and skip", "split", "max_samples", "slice", "splits joined", "bad row left out"],
)
def test_which_rows_of_a_stream_are_used(load, trained, conf, expected, held):
    splits = load(**conf)
    assert trained(islice(splits.train, len(expected))) == expected
    assert answers(splits.eval_conversations) == held


def test_a_stream_is_shuffled_packed_and_mixed(load, trained_text):
    drawn = [trained_text(example) for example in islice(load(buffer_size=8).train, 30)]
    assert sorted(drawn) == sorted(f"Answer {n}.<|im_end|>" for n in range(1, 31)) != drawn
    packed = load(packing=True, cutoff_len=200).train
    assert all(sum(row["seq_lengths"]) == len(row["input_ids"]) <= 200 for row in islice(packed, 10))
    mix = {"all": {"path": "someone/data", "weight": 2.0}, "few": {"path": "someone/data", "split": "test"}}
    mixed = [trained_text(example) for example in islice(load(None, mix=mix).train, 6)]
    assert mixed == [f"Answer {n}.<|im_end|>" for n in (1, 2, 1, 3, 4, 2)]


def test_a_rehearsal_streams_a_few_rows_and_finds_the_bad_one(load):
    assert len({tuple(example["input_ids"]) for example in islice(load(smoke=True, val_size=20).train, 50)}) == 8
    with pytest.raises(DataError, match=r"someone/bad \[train\], row 17, column 'output': null where a text is expected"):
        load("someone/bad", smoke=True)


@pytest.mark.parametrize(("conf", "downloads"), [({}, False), ({"split": "train[:50%]"}, True)], ids=["split", "part"])
def test_a_rehearsal_downloads_no_more_than_it_reads(load, trained, tmp_path, conf, downloads):
    splits = load(streaming=False, smoke=True, val_split="test", **conf)
    assert trained(splits.train) == [*range(1, 9)]
    assert answers(splits.eval_conversations) == [1, 2, 3]
    assert any((tmp_path / "tables").rglob("*.arrow")) == downloads


def test_files_that_cannot_be_read_are_reported_with_their_location(load):
    with pytest.raises(DataError) as error:
        load("someone/broken")
    assert str(error.value).startswith("someone/broken [train], after row 0: can't be read: JSON parse error: ")
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "someone/dta"}, "dataset.path: 'someone/dta' is neither a dataset on the hub nor a path on this machine."),
        ({"split": "nix"}, "dataset.split: 'nix' does not exist. Known: train, test."),
        ({"split": "nix", "streaming": False}, "dataset.split: 'someone/data' can't be loaded: Unknown split \"nix\"."),
        ({"subset": "nix"}, "dataset.subset: 'someone/data' can't be loaded: BuilderConfig 'nix' not found."),
        ({"split": "train[:10%]"}, "dataset.split: 'train[:10%]' needs the length of a streamed dataset, which is unknown."),
        ({"split": "train[-3:]"}, "dataset.split: 'train[-3:]' needs the length of a streamed dataset, which is unknown."),
        ({"split": "train[:x]", "streaming": False}, "dataset.split: 'train[:x]' is not a split."),
    ],
    ids=["dataset", "split", "split of a table", "subset", "percent", "from the end", "not a split"],
)
def test_what_the_hub_does_not_have_is_reported_with_its_key(asked, tmp_path, arguments, message):
    arguments = {"path": "someone/data", "streaming": True, **arguments}
    with pytest.raises(ConfigError) as error:
        open_source(**arguments, hub=HubConf(cache_dir=str(tmp_path)))
    assert str(error.value).startswith(message)


def test_a_downloaded_dataset_can_be_streamed_offline(load, trained, monkeypatch):
    load(streaming=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert trained(islice(load().train, 3)) == [1, 2, 3]

"""Results of earlier runs are found complete or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil

import pytest

from llmmod.reuse.store import Result, ResultStore, read_result, write_result


@pytest.fixture
def results(tmp_path):
    return ResultStore(tmp_path / "index")


def trained(results, directory, weights="weights", key="key"):
    """A directory with a training's result, including a checkpoint."""
    (directory / "checkpoint-2").mkdir(parents=True)
    (directory / "checkpoint-2" / "optimizer.pt").write_text("state")
    (directory / "adapter_model.safetensors").write_text(weights)
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "tiny"}))
    results.keep(directory, key, metrics={"train_loss": 0.5}, kind="adapter")
    return directory


def empty(tmp_path, name="second"):
    directory = tmp_path / name / "sft"
    directory.mkdir(parents=True)
    return directory


def test_a_result_is_copied_without_its_checkpoints(results, tmp_path):
    first, second = trained(results, tmp_path / "first" / "sft"), empty(tmp_path)
    result, place = results.take("key", second)
    assert (place, result.kind, result.metrics) == (first, "adapter", {"train_loss": 0.5})
    assert sorted(path.name for path in second.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "result.json"]
    assert (second / "adapter_model.safetensors").read_text() == "weights"
    assert read_result(second) == result


def test_the_copy_is_found_when_the_first_is_gone(results, tmp_path):
    first, second, third = trained(results, tmp_path / "first" / "sft"), empty(tmp_path), empty(tmp_path, "third")
    results.take("key", second)
    shutil.rmtree(first)
    assert results.take("key", third)[1] == second
    assert len(list((tmp_path / "index" / "key").iterdir())) == 2  # the first one's entry was removed, too


def test_another_training_is_not_found(results, tmp_path):
    trained(results, tmp_path / "first" / "sft")
    assert results.take("other", empty(tmp_path)) is None


@pytest.mark.parametrize("harm", ["changed", "gone", "trained over", "half trained over", "no record"])
def test_an_incomplete_result_is_skipped(results, tmp_path, harm):
    first, second = trained(results, tmp_path / "first" / "sft"), empty(tmp_path)
    weights = first / "adapter_model.safetensors"
    if harm == "changed":
        weights.write_text("weightz")
    elif harm == "gone":
        weights.unlink()
    elif harm == "trained over":
        results.keep(first, "other", metrics={}, kind="adapter")
    elif harm == "half trained over":
        write_result(first, Result("key"))
    else:
        (first / "result.json").write_text("{")
    assert results.take("key", second) is None
    assert list(second.iterdir()) == []


def test_an_older_one_is_taken_where_the_newest_is_damaged(results, tmp_path):
    older = trained(results, tmp_path / "older" / "sft")
    newest = trained(results, tmp_path / "newest" / "sft")
    (newest / "adapter_model.safetensors").write_text("weightz")
    assert results.take("key", empty(tmp_path))[1] == older


def test_a_killed_run_left_nothing_to_be_found(results, tmp_path):
    """The run recorded the start of its training, but its weights may be from an earlier step."""
    first = tmp_path / "first" / "sft"
    first.mkdir(parents=True)
    write_result(first, Result("key"))
    (first / "adapter_model.safetensors").write_text("half")
    assert results.take("key", empty(tmp_path)) is None


def test_in_its_own_directory_nothing_is_copied(results, tmp_path):
    first = trained(results, tmp_path / "first" / "sft")
    before = (first / "adapter_model.safetensors").stat().st_ino
    assert results.take("key", first)[1] == first
    assert (first / "adapter_model.safetensors").stat().st_ino == before


def test_a_base_of_the_same_run_is_that_of_the_new_run(results, tmp_path):
    first, second = tmp_path / "first" / "rm", empty(tmp_path)
    first.mkdir(parents=True)
    (first / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "first" / "sft"), "r": 8}))
    results.keep(first, "key", metrics={}, kind="adapter")
    assert results.take("key", second) is not None
    assert json.loads((second / "adapter_config.json").read_text()) == {"base_model_name_or_path": str(tmp_path / "second" / "sft"), "r": 8}
    assert results.take("key", second)[1] == second  # complete, with its own digests


def test_an_index_that_cannot_be_written_gives_only_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    trained(ResultStore(tmp_path / "file" / "index"), tmp_path / "first" / "sft")
    assert "later runs won't find" in caplog.text


def _work(index, root, number):
    results, directory = ResultStore(index), root / f"run{number}" / "sft"
    for turn in range(20):
        key = f"key{turn}"
        place = directory.parent / key
        place.mkdir(parents=True)
        taken = results.take(key, place)
        if taken is None:
            (place / "adapter_model.safetensors").write_text(f"weights of {key}")
            results.keep(place, key, metrics={"turn": turn}, kind="adapter")
        elif taken[0].metrics != {"turn": turn} or (place / "adapter_model.safetensors").read_text() != f"weights of {key}":
            os._exit(1)
    os._exit(0)


def test_two_processes_at_once_find_whole_results(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_work, args=(tmp_path / "index", tmp_path, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list((tmp_path / "index").rglob("*.txt"))) == 40

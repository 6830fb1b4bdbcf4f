"""Which checkpoint `training.resume_from_checkpoint` means."""

from __future__ import annotations

import pytest

from llmmod.errors import ConfigError
from llmmod.stages.loop.resume import checkpoints, find_checkpoint


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of steps 2, 10 and an unfinished one of step 12, and its final model beside them."""
    train = tmp_path / "run" / "train"
    for step in (2, 10, 12):
        (train / f"checkpoint-{step}").mkdir(parents=True)
        (train / f"checkpoint-{step}" / "optimizer.pt").touch()
    for step in (2, 10):
        (train / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (train / "checkpoint-12" / "trainer_state.json").write_text('{"epoch": 1.')
    (train / "trainer_state.json").write_text("{}")
    return tmp_path / "run"


def test_checkpoints_are_ordered_by_number_and_complete(run):
    assert [path.name for path in checkpoints(run / "train")] == ["checkpoint-2", "checkpoint-10"]


def test_no_directory_no_checkpoints(tmp_path):
    assert checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize("wanted", [None, False, "false", "null", ""])
def test_none_is_wanted(run, wanted):
    assert find_checkpoint(wanted, train_dir=run / "train") is None


@pytest.mark.parametrize("wanted", [True, "true", "True"])
def test_true_is_the_newest_of_this_run(run, wanted):
    assert find_checkpoint(wanted, train_dir=run / "train") == run / "train" / "checkpoint-10"


@pytest.mark.parametrize("inside", ["train/checkpoint-2", "train", ""], ids=["a checkpoint", "a train directory", "a run"])
def test_a_path(run, tmp_path, inside):
    expected = "checkpoint-2" if "checkpoint" in inside else "checkpoint-10"
    assert find_checkpoint(str(run / inside), train_dir=tmp_path) == run / "train" / expected


def refused(wanted, train_dir):
    with pytest.raises(ConfigError) as caught:
        find_checkpoint(wanted, train_dir=train_dir)
    message = str(caught.value)
    assert message.startswith("training.resume_from_checkpoint: ")
    return message


def test_points_nowhere(run, tmp_path):
    assert "there is no directory /nowhere/checkpoint-7" in refused("/nowhere/checkpoint-7", tmp_path)
    assert f"There are {run}/train/checkpoint-10, {run}/train/checkpoint-2." in refused(f"{run}/train/checkpoint-7", tmp_path)


def test_true_where_there_is_none(tmp_path):
    assert "there is no checkpoint in" in refused(True, tmp_path)


def test_a_directory_that_is_something_else(tmp_path):
    assert "is no checkpoint and holds none" in refused(str(tmp_path), tmp_path / "train")


def test_an_unfinished_checkpoint(run, tmp_path):
    assert "is incomplete" in refused(f"{run}/train/checkpoint-12", tmp_path)


def test_a_checkpoint_of_weights_alone(run, tmp_path):
    (run / "train" / "checkpoint-10" / "optimizer.pt").unlink()
    assert "holds no optimizer state" in refused(f"{run}/train/checkpoint-10", tmp_path)

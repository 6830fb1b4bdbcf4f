"""run.json and metrics.json are correct at every moment, for every end of a step."""

import json

import pytest

from llmmod.pipeline.record import Record, write_json


def read(directory, name="run.json"):
    return json.loads((directory / name).read_text(encoding="utf-8"))


def test_steps_are_pending_then_running_then_completed(tmp_path):
    record = Record(tmp_path, seed=7, pipeline=["train", "evaluate"])
    assert [s["status"] for s in read(tmp_path)["steps"]] == ["pending", "pending"]
    with record.step("train") as report:
        assert read(tmp_path)["steps"][0]["status"] == "running"
        report.metrics = {"train_loss": 1.5}
        report.artifacts = {"model": "train"}
    run = read(tmp_path)
    assert (run["status"], run["seed"]) == ("running", 7)
    assert run["steps"][0]["status"] == "completed"
    assert run["steps"][0]["metrics"] == {"train_loss": 1.5}
    assert run["steps"][0]["artifacts"] == {"model": "train"}
    assert run["steps"][0]["peak_rss_bytes"] > 1_000_000
    assert run["steps"][1]["status"] == "pending"
    assert read(tmp_path, "metrics.json") == {"train_loss": 1.5}
    record.close("completed")
    assert read(tmp_path)["status"] == "completed"
    assert set(read(tmp_path)["versions"]) == {"llmmod", "torch", "transformers", "peft", "trl"}


@pytest.mark.parametrize(("raised", "status"), [(ValueError("x"), "failed"), (KeyboardInterrupt(), "interrupted")], ids=["error", "ctrl-c"])
def test_a_step_that_does_not_end_well_is_recorded_and_the_error_goes_on(tmp_path, raised, status):
    record = Record(tmp_path, seed=0, pipeline=["train"])

    def train():
        with record.step("train") as report:
            report.metrics = {"train_loss": 2.0}
            raise raised

    with pytest.raises(type(raised)):
        train()
    assert read(tmp_path)["steps"][0]["status"] == status
    assert read(tmp_path, "metrics.json") == {"train_loss": 2.0}
    assert record.running == "train"


def test_other_ranks_write_nothing(tmp_path):
    record = Record(tmp_path, seed=0, pipeline=["train"], enabled=False)
    with record.step("train"):
        pass
    record.close("completed")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_fragment(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_the_reserve_is_there_while_the_run_goes_and_given_up_at_its_end(tmp_path):
    record = Record(tmp_path, seed=0, pipeline=["train"])
    assert (tmp_path / ".reserve").stat().st_size == 65536
    record.close("failed", "the disk is full")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "run.json"]
    assert read(tmp_path)["error"] == "the disk is full"


def test_metrics_of_several_steps_of_a_kind(tmp_path):
    record = Record(tmp_path, seed=0, pipeline=["sft", "rm", "evaluate"], several=["sft", "rm"])
    for name, loss in (("sft", 2.0), ("rm", 0.5)):
        with record.step(name) as report:
            report.metrics = {"train_loss": loss}
    with record.step("evaluate") as report:
        report.metrics = {"eval_loss": 1.0}
    expected = {"train_loss": 0.5, "sft/train_loss": 2.0, "rm/train_loss": 0.5, "eval_loss": 1.0}  # the last one's under the plain name
    assert read(tmp_path, "metrics.json") == expected

"""The table at the end of a sweep, its best job, and planned jobs that never ran."""

import json
import math
from types import SimpleNamespace

import pytest
import yaml

from llmmod.sweep.results import Goal, best_jobs, command_of, job_directory, printed, read_jobs, refused_job, table, write_leaderboard


def job(directory, overrides, status, metrics, error=None):
    (directory / ".hydra").mkdir(parents=True)
    (directory / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (directory / "run.json").write_text(json.dumps({"status": status, "error": error}))
    (directory / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def sweep(tmp_path):
    job(tmp_path / "0", ["finetune.r=4", "smoke=true"], "completed", {"train_loss": 2.0, "eval_loss": 1.25})
    job(tmp_path / "1", ["finetune.r=8", "smoke=true"], "failed", {}, "train: the loss is NaN at step 3.")
    (tmp_path / "10" / ".hydra").mkdir(parents=True)
    (tmp_path / "10" / ".hydra" / "overrides.yaml").write_text("[finetune.r=16, smoke=true]")
    return tmp_path


def test_the_table_shows_what_varied_and_every_metric(sweep):
    header, rows = table(read_jobs(sweep))
    assert header == ["job", "finetune.r", "status", "train_loss", "eval_loss"]
    assert rows == [["0", "4", "completed", "2", "1.25"], ["1", "8", "failed", "", ""], ["10", "16", "failed", "", ""]]


def test_the_csv_and_the_terminal_hold_the_same(sweep):
    jobs = read_jobs(sweep)
    assert write_leaderboard(sweep, jobs).read_text().splitlines()[1] == "0,4,completed,2,1.25"
    assert printed(jobs).splitlines()[2].split() == ["1", "8", "failed"]
    assert jobs[2].error == "it left no run.json"


def test_a_job_that_was_refused_is_in_the_table_and_has_no_number(sweep):
    jobs = [*read_jobs(sweep), refused_job(["finetune.r=0", "smoke=true"], "finetune.r: found 0. Allowed: from 1 on.")]
    assert table(jobs)[1][-1] == ["-", "0", "refused", "", ""]
    assert jobs[-1].name == "finetune.r=0 smoke=true"
    assert jobs[0].name == "0"


def test_of_several_steps_each_one_s_metrics_are_shown_and_first_those_that_differ(tmp_path):
    """The metrics after a sweep over the last of three steps. Those of the last step of a kind also have their plain names."""
    for number, reward in enumerate((0.5, 0.75)):
        steps = {"sft/eval_loss_before": 3.0, "sft/eval_loss": 1.0, "sft/train_loss": 2.0, "rm/eval_loss": 0.25, "ppo/eval_reward": reward}
        plain = {"train_loss": 2.0, "eval_loss": 0.25, "eval_reward": reward, "predict_rouge-1": 60.0 + number}
        job(tmp_path / str(number), [f"steps.ppo.training.learning_rate={number}e-4"], "completed", plain | steps)
    jobs = read_jobs(tmp_path)
    shown = printed(jobs, most_metrics=4).splitlines()
    assert shown[0].split() == [
        "job",
        "steps.ppo.training.learning_rate",
        "status",
        "predict_rouge-1",
        "sft/eval_loss",
        "rm/eval_loss",
        "ppo/eval_reward",
    ]
    assert shown[2].split() == ["1", "1e-4", "completed", "61", "1", "0.25", "0.75"]
    assert printed(jobs, most_metrics=2).splitlines()[0].split()[3:] == ["predict_rouge-1", "ppo/eval_reward"]
    assert {"eval_loss", "sft/eval_loss_before"} <= set(table(jobs)[0])  # the file has all columns


def test_the_best_job_is_the_completed_one_with_the_best_metric(sweep):
    job(sweep / "2", ["finetune.r=2", "smoke=true"], "completed", {"eval_loss": 0.75, "train_loss": 3.0})
    job(sweep / "3", ["finetune.r=1", "smoke=true"], "completed", {"eval_loss": math.nan})
    job(sweep / "4", ["finetune.r=32", "smoke=true"], "pruned", {"eval_loss": 0.5})
    jobs = read_jobs(sweep)
    assert [job.name for job in best_jobs(jobs, Goal())] == ["2"]
    assert [job.name for job in best_jobs(jobs, Goal(("eval_loss",), (True,)))] == ["0"]
    assert best_jobs(jobs, Goal(("predict_rouge-l",), (True,))) == []


def test_with_several_metrics_each_job_that_no_other_one_dominates_is_best(tmp_path):
    for number, (loss, rouge) in enumerate([(1.0, 50.0), (2.0, 60.0), (2.0, 55.0), (3.0, 40.0)]):
        job(tmp_path / str(number), [f"seed={number}"], "completed", {"eval_loss": loss, "predict_rouge-l": rouge})
    goal = Goal.of(SimpleNamespace(metric=["eval_loss", "predict_rouge-l"], direction=["minimize", "maximize"]))
    assert [job.name for job in best_jobs(read_jobs(tmp_path), goal)] == ["0", "1"]


def test_the_command_of_a_job_can_be_typed_as_it_is(tmp_path):
    job(tmp_path / "0", ["finetune.r=4", "pipeline=[train]", "+note='a b'", "sweep.metric=train_loss"], "completed", {})
    (only,) = read_jobs(tmp_path)
    assert command_of(only, ["--config-dir=my options"]) == (
        "llmmod '--config-dir=my options' finetune.r=4 'pipeline=[train]' '+note='\"'\"'a b'\"'\"''"
    )


def test_a_job_that_was_planned_and_never_began_is_missing(sweep):
    planned = [{"number": 0, "overrides": ["finetune.r=4", "smoke=true"]}, {"number": 7, "overrides": ["finetune.r=64", "smoke=true"]}]
    (sweep / "sweep.json").write_text(json.dumps({"arguments": [], "jobs": planned}))
    jobs = read_jobs(sweep)
    assert [(job.number, job.status) for job in jobs] == [("0", "completed"), ("1", "failed"), ("7", "missing"), ("10", "failed")]
    assert not jobs[2].ended_well


def test_a_job_is_found_by_its_number_wherever_its_directory_is(tmp_path):
    (tmp_path / "rank=8" / ".hydra").mkdir(parents=True)
    (tmp_path / "rank=8" / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"sweep": {"subdir": "x"}, "job": {"num": 3}}}))
    assert job_directory(tmp_path, 3) == tmp_path / "rank=8"
    assert job_directory(tmp_path, 8) is None

"""The jobs of a sweep, and the table at its end."""

import json

import pytest
import yaml

from llmmod.errors import ConfigError
from llmmod.pipeline.jobs import printed, read_jobs, refused_job, sweep_jobs, table, write_leaderboard


def test_jobs_are_the_product_in_the_basic_sweepers_order():
    jobs = sweep_jobs(["training.learning_rate=1e-5,1e-4", "finetune.r=4,8", "smoke=true"])
    assert [sorted(job) for job in jobs] == [
        sorted([f"training.learning_rate={rate}", f"finetune.r={r}", "smoke=True"]) for rate in ("1e-05", "0.0001") for r in (4, 8)
    ]


def test_ranges_and_groups_vary_too():
    jobs = sweep_jobs(["model=llama,bloom", "seed=range(0,3)"])
    assert len(jobs) == 6
    assert ["model=bloom", "seed=2"] in jobs


def test_an_override_that_is_no_override_is_refused():
    with pytest.raises(ConfigError, match="-m: "):
        sweep_jobs(["training.learning_rate=[1,"])


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
    """As a sweep over the last of three steps leaves them: what the last step of a kind measured has its plain name, too."""
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
    assert {"eval_loss", "sft/eval_loss_before"} <= set(table(jobs)[0])  # the file has all

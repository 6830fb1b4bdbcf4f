"""When a sweep is resumed, killed or interrupted jobs resume from their checkpoints and end like uninterrupted ones."""

import json
import shutil

import pytest
import yaml
from holder import held_by_another
from light_jobs import left, sweep_of
from typed import typed

from llmmod.sweep.plan import RESUMES, Planned, planned_jobs, write_manifest
from llmmod.sweep.results import read_jobs


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def as_killed(job, *, after):
    """Turn a completed job into one that was killed after a checkpoint: remove later files, and set the status in run.json to running."""
    for path in (job / "train").iterdir():
        if path.name != after:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    record = json.loads((job / "run.json").read_text())
    record["status"] = record["steps"][0]["status"] = "running"
    (job / "run.json").write_text(json.dumps(record))
    (job / "metrics.json").write_text("{}")


def test_a_killed_job_goes_on_from_its_checkpoint_to_the_same_bytes(work):
    steps = ["training.save_strategy=steps", "training.save_steps=1", "training.logging_steps=1", "finetune.lora_dropout=0.1"]
    done = typed("-m", "seed=1,2", "smoke=true", "pipeline=[train]", *steps, "hydra.sweep.dir=sweep")
    assert done.code == 0, done.said
    shutil.copytree("sweep", "whole")
    as_killed(work / "sweep" / "1", after="checkpoint-1")
    resumed = typed("sweep.resume=sweep")
    assert resumed.code == 0, resumed.said
    assert "Launching 1 jobs" in resumed.said
    one, other = ((work / place / "1" / "train" / "adapter_model.safetensors").read_bytes() for place in ("whole", "sweep"))
    assert one == other
    assert "resuming from" in (work / "sweep" / "1" / "run.log").read_text()
    assert not (work / "sweep" / "earlier").exists()
    tables = [(work / place / "leaderboard.csv").read_text().splitlines() for place in ("whole", "sweep")]
    assert [line.split(",")[:3] for line in tables[0]] == [line.split(",")[:3] for line in tables[1]]
    metrics = [json.loads((work / place / "1" / "metrics.json").read_text()) for place in ("whole", "sweep")]
    assert metrics[0]["train_loss"] == metrics[1]["train_loss"]
    assert metrics[0]["eval_loss"] == metrics[1]["eval_loss"]


@pytest.fixture
def ended(work):
    """A sweep of four jobs that ended in different ways, each with a checkpoint."""
    from types import SimpleNamespace

    jobs = [Planned(number, [f"finetune.r={number + 1}"]) for number in range(4)]
    write_manifest(work, SimpleNamespace(arguments=[]), jobs)
    ways = (("running", "running"), ("interrupted", "interrupted"), ("failed", "running"), ("failed", "failed"))
    for job, (status, step) in zip(jobs, ways, strict=True):
        place = work / str(job.number)
        (place / ".hydra").mkdir(parents=True)
        (place / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(job.overrides))
        (place / "run.json").write_text(json.dumps({"status": status, "steps": [{"name": "train", "status": step}]}))
        (place / "train" / "checkpoint-5").mkdir(parents=True)
    return [job.overrides for job in jobs]


def test_a_failed_job_starts_again_and_an_interrupted_one_resumes(work, ended):
    planned = planned_jobs(work, ended, resumed=True)
    assert [dict(job.environment) for job in planned] == [*[{RESUMES: "1"}] * 3, {}]
    assert [path.name for path in (work / "earlier").iterdir()] == ["3-1"]


def test_without_a_checkpoint_a_job_begins_anew(work, ended):
    shutil.rmtree(work / "0" / "train" / "checkpoint-5")
    assert not planned_jobs(work, ended, resumed=True)[0].environment
    assert (work / "earlier" / "0-1").is_dir()


def test_a_job_that_still_runs_is_left_alone(work, ended, capsys):
    with held_by_another(work / "0"):
        assert [job.number for job in planned_jobs(work, ended, resumed=True)] == [1, 2, 3]
    assert f"'{work / '0'}' is held by process" in capsys.readouterr().err
    assert (work / "0" / "train" / "checkpoint-5").is_dir()


@pytest.mark.parametrize("host", [None, "a-node-that-is-gone"], ids=["this machine", "another"])
def test_a_trial_of_a_search_goes_on_on_any_machine(monkeypatch, work, host):
    optuna = pytest.importorskip("optuna")
    if host:
        monkeypatch.setattr("socket.gethostname", lambda: host)

    def job(config):
        import os

        place = left({"eval_loss": 1.0}, goes_on=RESUMES in os.environ, steps=[])
        if place.name == "1":
            left({}, status="running", steps=[{"name": "train", "status": "running"}])
            (place / "train" / "checkpoint-3").mkdir(parents=True)
            raise KeyboardInterrupt

    own = ["hydra/sweeper=llmmod_optuna", "smoke=true", "hydra.sweep.dir=sweep", "hydra.sweeper.n_trials=3"]
    sweep_of(job, *own, "finetune.r=range(4, 33)", monkeypatch=monkeypatch)
    if host:
        monkeypatch.setattr("socket.gethostname", lambda: "a-node-of-the-day-after")
    sweep, _ = sweep_of(job, "sweep.resume=sweep", monkeypatch=monkeypatch)
    assert [(job.number, job.status) for job in read_jobs(sweep.directory)] == [(number, "completed") for number in "023"]
    assert [json.loads((work / "sweep" / number / "run.json").read_text())["goes_on"] for number in "023"] == [False, True, False]
    assert (work / "sweep" / "2" / "train" / "checkpoint-3").is_dir()
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("sweep/study.log"))
    trials = optuna.load_study(study_name="llmmod", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[1].params == trials[2].params

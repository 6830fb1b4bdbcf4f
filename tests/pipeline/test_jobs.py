"""The output at the end of a sweep, and the state that other processes get."""

import json
import pickle

import yaml
from light_jobs import sweep_of
from omegaconf import OmegaConf

from llmmod.errors import ConfigError, Problem
from llmmod.pipeline.jobs import Jobs
from llmmod.pipeline.record import write_json
from llmmod.pipeline.run import Interrupted, Outcome
from llmmod.sweep.plan import Sweep
from llmmod.sweep.results import Goal, read_jobs


def job(directory, overrides, status, metrics, **more):
    (directory / ".hydra").mkdir(parents=True)
    (directory / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (directory / "run.json").write_text(json.dumps({"status": status, **more}))
    (directory / "metrics.json").write_text(json.dumps(metrics))


def sweep_in(directory, **more):
    return Sweep(["seed=1,2"], [["seed=1"], ["seed=2"]], [], Goal(), lambda overrides: None, directory=directory, **more)


def test_the_end_of_a_sweep_names_the_best_job_and_every_failure(tmp_path, capsys):
    job(tmp_path / "0", ["seed=1"], "completed", {"eval_loss": 2.0}, exit_code=0)
    job(tmp_path / "1", ["seed=2"], "completed", {"eval_loss": 1.0}, exit_code=0)
    job(tmp_path / "2", ["seed=3"], "failed", {}, exit_code=1, error="train: the disk is full.")
    (tmp_path / "2" / "run.log").write_text("what happened")
    sweep = sweep_in(tmp_path)
    assert Jobs(multirun=True, sweep=sweep, flags=["--config-dir=my conf"]).finish() == 1
    said = capsys.readouterr()
    assert "The best: job 1, eval_loss=1\n  llmmod '--config-dir=my conf' seed=2\n" in said.out
    assert f"Job 2 failed: train: the disk is full.\n  Its log: {tmp_path / '2' / 'run.log'}\n" in said.err
    assert f"llmmod '--config-dir=my conf' -m sweep.resume={tmp_path}" in said.err
    sweep.refused.append((["seed=-1"], ConfigError(Problem("seed", "found -1"))))
    assert Jobs(multirun=True, sweep=sweep).finish() == 2
    assert "Job seed=-1 refused: seed: found -1." in capsys.readouterr().err


def test_a_pruned_job_is_no_failure(tmp_path, capsys):
    job(tmp_path / "0", ["seed=1"], "completed", {"eval_loss": 2.0}, exit_code=0)
    job(tmp_path / "1", ["seed=2"], "pruned", {"eval_loss": 9.0}, exit_code=0, error="Pruned at evaluation 1")
    assert Jobs(multirun=True, sweep=sweep_in(tmp_path)).finish() == 0
    assert capsys.readouterr().err == ""


def test_a_job_that_its_queue_begins_again_resumes(tmp_path, monkeypatch):
    begun = []

    def run_configured(root, run_dir, *, commands, **ignored):
        begun.append((root.auto_resume, commands.get("job_id")))
        write_json(run_dir / "run.json", {"status": "running", **commands})
        return Outcome("completed", run_dir, {})

    def begin():
        sweep_of(Jobs(multirun=True).run, "seed=1", "smoke=true", f"hydra.sweep.dir={tmp_path}", monkeypatch=monkeypatch)
        return begun.pop()

    monkeypatch.setattr("llmmod.pipeline.jobs.run_configured", run_configured)
    assert begin() == (False, None)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    resumes, identity = begin()  # in a directory that another job used
    assert (resumes, bool(identity)) == (False, True)
    assert begin() == (True, identity)


def test_after_a_signal_a_process_of_several_begins_no_further_job(tmp_path, monkeypatch):
    begun = []

    def run_configured(root, run_dir, **ignored):
        begun.append(run_dir.name)
        write_json(run_dir / "run.json", {"status": "interrupted", "exit_code": 143, "steps": []})
        return Outcome("interrupted", run_dir, {}, error=Interrupted(15))

    monkeypatch.setattr("llmmod.pipeline.jobs.run_configured", run_configured)
    monkeypatch.setattr("llmmod.pipeline.jobs._stopped_by", [])
    sweep_of(Jobs(multirun=True).run, "seed=1,2", "smoke=true", f"hydra.sweep.dir={tmp_path}", monkeypatch=monkeypatch)
    assert begun == ["0"]
    assert [(job.status, job.exit_code) for job in read_jobs(tmp_path)] == [("interrupted", 143)] * 2
    assert read_jobs(tmp_path)[1].error == "the sweep was stopped before"


def test_the_function_that_hydra_calls_is_pickled_without_the_sweep(tmp_path):
    copied = pickle.loads(pickle.dumps(Jobs(multirun=True, sweep=sweep_in(tmp_path)).run))
    assert vars(copied.__self__) == vars(Jobs(multirun=True))
    OmegaConf.clear_resolver("started")
    pickle.loads(pickle.dumps(Jobs(multirun=True).run))
    assert OmegaConf.has_resolver("started")  # it is needed to compose a job's configuration

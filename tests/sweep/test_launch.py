"""Jobs in separate processes: the others continue if one dies, and all share the cores."""

import json
import os
import signal
import threading
import time

import pytest
import yaml
from light_jobs import sweep_of

from llmmod.distributed import cores
from llmmod.sweep.launch import threads_of_each
from llmmod.sweep.results import read_jobs


def write_run():
    """A job that ends at once. It is a nested function, so that other processes get its code."""

    def run(config):
        import json
        import os
        import signal
        from pathlib import Path

        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        place = Path(hydra.runtime.output_dir)
        (place / "run.json").write_text(json.dumps({"status": "running"}))
        if config.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if config.seed == 2:
            raise RuntimeError("it doesn't like 2")
        (place / "threads").write_text(os.environ.get("OMP_NUM_THREADS", "none"))
        (place / "run.json").write_text(json.dumps({"status": "completed", "pid": os.getpid()}))

    return run


@pytest.mark.parametrize(
    ("launcher", "package", "more"),
    [
        ("joblib", "hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
        ("submitit_local", "hydra_plugins.hydra_submitit_launcher", []),
        ("llmmod_ray", "ray", []),
    ],
    ids=["joblib", "submitit", "ray"],
)
def test_a_process_that_is_killed_takes_no_other_job_along(launcher, package, more, monkeypatch, tmp_path):
    pytest.importorskip(package)
    if launcher == "submitit_local":  # it waits so long for the result of a process that has ended without one
        monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(tmp_path)
    own = [f"hydra/launcher={launcher}", "hydra.sweep.dir='it is\\'s'", *more]
    sweep, code = sweep_of(write_run(), "seed=0,1,2", "smoke=true", *own, monkeypatch=monkeypatch)
    assert code == 0
    directory = sweep.directory
    jobs = read_jobs(directory)
    assert [(job.number, job.status) for job in jobs] == [("0", "completed"), ("1", "failed"), ("2", "failed")]
    assert "2" in jobs[2].error
    assert jobs[1].error
    assert yaml.safe_load((directory / "1" / ".hydra" / "overrides.yaml").read_text()) == ["seed=1", "smoke=True"]
    assert json.loads((directory / "0" / "run.json").read_text())["pid"] != os.getpid()
    shared = threads_of_each(min(2, cores()))
    assert (directory / "0" / "threads").read_text() in (str(shared), str(cores()))


def wait_for_signal():
    """A job that ends when its process gets SIGTERM. It is a nested function, so that other processes get its code."""

    def run(config):
        import json
        import signal
        import time
        from pathlib import Path

        from hydra.core.hydra_config import HydraConfig

        place, got = Path(HydraConfig.get().runtime.output_dir), []
        signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
        (place / "ready").touch()
        while not got:
            time.sleep(0.02)
        (place / "run.json").write_text(json.dumps({"status": "interrupted", "exit_code": 143, "steps": []}))

    return run


@pytest.mark.parametrize(
    ("launcher", "package", "more"),
    [
        ("joblib", "hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
        ("submitit_local", "hydra_plugins.hydra_submitit_launcher", []),
    ],
    ids=["joblib", "submitit"],
)
def test_a_signal_reaches_every_job_and_none_begins_after_it(launcher, package, more, monkeypatch, tmp_path):
    pytest.importorskip(package)
    monkeypatch.setattr("llmmod.sweep.launch.cores", lambda: 2)

    def send_when_ready():
        while len(list(tmp_path.glob("*/ready"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send_when_ready, daemon=True)
    before = signal.getsignal(signal.SIGTERM)
    sender.start()
    own = [f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path}", "hydra.sweeper.max_batch_size=2", *more]
    _, code = sweep_of(wait_for_signal(), "seed=0,1,2", "smoke=true", *own, monkeypatch=monkeypatch)
    assert code == 1
    assert [(job.number, job.status) for job in read_jobs(tmp_path)] == [("0", "interrupted"), ("1", "interrupted"), ("2", "missing")]
    assert signal.getsignal(signal.SIGTERM) is before


def test_jobs_side_by_side_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("llmmod.sweep.launch.cores", lambda: 8)
    assert [threads_of_each(jobs) for jobs in (1, 2, 3, 16)] == [8, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [threads_of_each(jobs) for jobs in (1, 2, 4)] == [3, 3, 2]

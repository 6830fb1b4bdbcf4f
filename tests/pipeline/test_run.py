"""The three ways in which a pipeline can end, and their records."""

import errno
import json
import os
import signal

import pytest
from holder import held_by_another

from llmmod.config.schema.steps import Root
from llmmod.errors import ConfigError, Problem
from llmmod.pipeline.run import run_pipeline
from llmmod.protocols import StepReport


class Fake:
    """A step that does what its configuration says."""

    def __init__(self, conf, name):
        self.conf, self.name = conf, name

    def run(self, session):
        if self.conf.does is not None:
            self.conf.does()
        session.put(self.name, True)
        return StepReport(metrics={f"{self.name}_seen": float(session.get("first") is True)}, summary=[f"{self.name} done"])


class Conf:
    def __init__(self, does=None):
        self.does = does
        self._target_ = f"{Fake.__module__}.Fake"


@pytest.fixture(autouse=True)
def located(monkeypatch):
    monkeypatch.setattr("llmmod.pipeline.run.locate", lambda path: Fake)


def root_of(**steps):
    root = Root()
    root.steps, root.pipeline = steps, list(steps)
    return root


def run_json(directory):
    return json.loads((directory / "run.json").read_text())


def raising(error):
    def do():
        raise error

    return do


def caused(cause):
    error = RuntimeError("it can't be saved")
    error.__cause__ = cause
    return error


@pytest.mark.report
def test_steps_run_in_order_and_share_the_session(tmp_path):
    outcome = run_pipeline(root_of(first=Conf(), second=Conf()), tmp_path)
    assert (outcome.status, outcome.exit_code) == ("completed", 0)
    assert outcome.metrics == {"first_seen": 1.0, "second_seen": 1.0, "first/first_seen": 1.0, "second/second_seen": 1.0}
    assert outcome.summary == ["first done", "second done"]
    assert run_json(tmp_path)["status"] == "completed"
    assert "Completed" in (tmp_path / "report.html").read_text()


@pytest.mark.report
@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError(Problem("model.x", "no such thing")), 2, "model.x: no such thing."),
        (ValueError("bad\nshape"), 1, "second: ValueError: bad shape."),
        (OSError(errno.ENOSPC, "No space left", "/d"), 1, "second: the disk is full: [Errno 28] No space left: '/d'."),
        (
            OSError(errno.EFBIG, "File too large", "/d"),
            1,
            "second: a file became too large: [Errno 27] File too large: '/d'. Raise the limit",
        ),
        (caused(OSError(errno.ENOSPC, "No space left", "/d")), 1, "second: the disk is full: it can't be saved."),
        (Exception("No space left on device (os error 28)"), 1, "second: the disk is full: No space left on device (os error 28)."),
    ],
    ids=["config", "unexpected", "full-disk", "too-large", "full-disk-below", "full-disk-in-rust"],
)
def test_an_error_keeps_what_came_before_and_gives_the_exit_code(tmp_path, error, code, words):
    outcome = run_pipeline(root_of(first=Conf(), second=Conf(raising(error)), third=Conf()), tmp_path)
    assert (outcome.status, outcome.exit_code) == ("failed", code)
    assert str(outcome.error).startswith(words)
    run = run_json(tmp_path)
    assert [s["status"] for s in run["steps"]] == ["completed", "failed", "pending"]
    assert "Failed" in (tmp_path / "report.html").read_text()
    assert run["status"] == "failed"
    assert run["error"].startswith(words)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"first_seen": 1.0, "first/first_seen": 1.0}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_is_an_interruption(tmp_path, number, code):
    commands = {"command": "llmmod", "resume_command": "llmmod output_dir=x", "cwd": "/"}
    outcome = run_pipeline(root_of(first=Conf(lambda: os.kill(os.getpid(), number))), tmp_path, commands=commands)
    assert (outcome.status, outcome.exit_code, outcome.resume_command) == ("interrupted", code, "llmmod output_dir=x")
    run = run_json(tmp_path)
    assert (run["status"], run["steps"][0]["status"]) == ("interrupted", "interrupted")
    assert {name: run[name] for name in commands} == commands


@pytest.mark.parametrize("queued_again", [False, True])
def test_a_job_that_its_queue_stops_is_interrupted_unless_it_is_queued_again(tmp_path, queued_again):
    def tell_queue(number, frame):  # like submitit
        if not queued_again:
            raise RuntimeError("timed-out too many times")
        os.kill(os.getpid(), signal.SIGTERM)  # by Slurm, to a job that is queued again
        raise SystemExit(-1)

    before = signal.signal(signal.SIGUSR2, tell_queue)
    try:
        root = root_of(first=Conf(lambda: os.kill(os.getpid(), signal.SIGUSR2)))
        if queued_again:
            with pytest.raises(SystemExit):
                run_pipeline(root, tmp_path)
            assert run_json(tmp_path)["status"] == "running"
        else:
            outcome = run_pipeline(root, tmp_path)
            assert (outcome.status, outcome.exit_code) == ("interrupted", 140)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_auto_resume_leaves_a_completed_run_as_it_is_and_runs_any_other(tmp_path):
    root = root_of(first=Conf())
    assert run_pipeline(root, tmp_path).status == "completed"
    root.auto_resume = True
    root.steps["first"] = Conf(raising(ValueError("it ran")))
    again = run_pipeline(root, tmp_path)
    assert (again.status, again.metrics) == ("completed", {"first_seen": 1.0})
    assert "nothing is left to do" in again.summary[0]
    (tmp_path / "run.json").write_text('{"status": "interrupted"}')
    assert run_pipeline(root, tmp_path).status == "failed"


def test_a_directory_that_another_process_holds_is_left_alone(tmp_path):
    with held_by_another(tmp_path) as process:
        outcome = run_pipeline(root_of(first=Conf()), tmp_path)
        assert (outcome.status, outcome.exit_code) == ("failed", 2)
        assert f"is held by process {process}" in str(outcome.error)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert run_pipeline(root_of(first=Conf()), tmp_path).status == "completed"
    assert not (tmp_path / ".lock").exists()


def test_a_directory_that_cannot_be_made_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    outcome = run_pipeline(root_of(first=Conf()), tmp_path / "file" / "run")
    assert outcome.status == "failed"
    assert outcome.exit_code != 0

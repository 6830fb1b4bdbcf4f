"""Which of several processes counts as the one that failed, the message, and the exit code."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import pytest

from llmmod.pipeline.launch import _outcome
from llmmod.pipeline.record import Record, close_record


def left(rank, error=None, *, status=None, lost_peers=False, at=0.0, exit_code=1):
    status = status or ("failed" if error else "completed")
    found = {"rank": rank, "status": status, "metrics": {"eval_loss": 1.5}, "summary": ["train: done"], "conversed": False}
    return found | {"error": error, "exit_code": exit_code if error else 0, "lost_peers": lost_peers, "time": at}


def outcome(failures, *records, processes=2, by_signal=None, tmp_path=None):
    return _outcome(SimpleNamespace(signal=by_signal, failures=failures), {r["rank"]: r for r in records}, tmp_path, processes=processes)


@pytest.mark.parametrize(
    ("failures", "records", "message", "code"),
    [
        pytest.param({1: 1, 0: 1}, [left(0, "gloo", lost_peers=True, at=1), left(1, "NaN", at=2)], "rank 1: NaN", 1, id="the cause"),
        pytest.param({0: 2, 1: 2}, [left(0, "no file", exit_code=2), left(1, "no file", exit_code=2)], "no file", 2, id="all alike"),
        pytest.param({0: 1, 1: 1}, [left(0, "first", at=1), left(1, "second", at=2)], "rank 0: first", 1, id="the earlier one"),
        pytest.param(
            {0: 1, 1: -signal.SIGKILL},
            [left(0, "reset by peer", lost_peers=True)],
            "rank 1: killed by SIGKILL. The system may have run out of memory.",
            137,
            id="killed",
        ),
        pytest.param({1: -signal.SIGSEGV, 0: -signal.SIGTERM}, [], "rank 1: killed by SIGSEGV.", 139, id="the launcher ended the other"),
        pytest.param({1: 3}, [left(0)], "rank 1: ended with exit code 3, without a message", 3, id="without a message"),
    ],
)
def test_the_process_that_failed_first_is_named(failures, records, message, code, tmp_path):
    found = outcome(failures, *records, tmp_path=tmp_path)
    assert (found.status, str(found.error), found.exit_code) == ("failed", message, code)


def test_what_the_first_process_found_is_the_result(tmp_path):
    found = outcome({}, left(0), left(1) | {"metrics": {}, "summary": []}, tmp_path=tmp_path)
    assert (found.status, found.metrics, found.summary, found.exit_code) == ("completed", {"eval_loss": 1.5}, ["train: done"], 0)


def test_a_signal_interrupts_all(tmp_path):
    stopped = [left(rank, "stopped by SIGTERM", status="interrupted", exit_code=143) for rank in (0, 1)]
    found = outcome({}, *stopped, by_signal=signal.SIGTERM, tmp_path=tmp_path)
    assert (found.status, str(found.error), found.exit_code) == ("interrupted", "stopped by SIGTERM", 143)


def test_the_record_of_a_killed_process_is_closed(tmp_path):
    record = Record(tmp_path, seed=1, pipeline=["train", "export"])
    with record.step("train"):
        written = (tmp_path / "run.json").read_text()  # the file of a process that is killed at this point
    (tmp_path / "run.json").write_text(written)
    close_record(tmp_path, "failed", "rank 0: killed by SIGKILL.", exit_code=137)
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["error"], run["exit_code"]) == ("failed", "rank 0: killed by SIGKILL.", 137)
    assert [step["status"] for step in run["steps"]] == ["failed", "pending"]
    assert not (tmp_path / ".reserve").exists()


def test_a_run_whose_first_process_did_not_write_a_record_has_one(tmp_path):
    close_record(tmp_path, "failed", "rank 1: killed by SIGKILL.", exit_code=137)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run == {"status": "failed", "error": "rank 1: killed by SIGKILL.", "exit_code": 137, "steps": []}

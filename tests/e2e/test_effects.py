"""Every argument has an effect or is refused: benchmarks/effects.py tries those of all stages; this tries a sample."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "effects.py"
sys.path.append(str(FILE.parent))  # effects.py imports its parts from there
effects, of_trials, of_runs = (importlib.import_module(name) for name in ("effects", "of_effects.trials", "of_effects.runs"))
SEED, COUNT = "21", "7"  # a sample without torch.compile, which takes 24 s of CPU a run and has tests in tests/trainers


def test_a_sample_of_all_arguments(warm_python):
    """effects.py forks, so it runs in a process of its own: a process that has already computed must not be forked."""
    command = [*warm_python, str(FILE), "--sample", COUNT, "--seed", SEED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"| all | {COUNT} |" in done.stdout


def test_every_argument_has_a_trial_and_the_tables_name_no_other():
    found, faults = of_trials.trials()
    assert faults == []
    assert {trial.stage for trial in found} == set(of_trials.STAGES)
    assert len(found) > 1000
    assert all(trial.value for trial in found)


def test_a_name_that_no_stage_has_is_reported(tmp_path, monkeypatch):
    tables = of_trials.TABLES.read_text(encoding="utf-8").replace("exceptions:\n", "exceptions:\n  ddp_timeot: several processes\n")
    (tmp_path / "effects.yaml").write_text(tables.replace("  neftune_noise_alpha: {value: 5}\n", ""), encoding="utf-8")
    monkeypatch.setattr(of_trials, "TABLES", tmp_path / "effects.yaml")
    faults = of_trials.trials()[1]
    assert "exceptions: no stage has ddp_timeot" in faults
    assert [fault for fault in faults if "sft.neftune_noise_alpha is None" in fault and "say what to try" in fault]


PLAIN = {"weights": "1", "printed": "a", "computation": "{}"}


class Known:
    """A stand-in for the runs: each changed run ends with `seen`."""

    def __init__(self, seen):
        self._seen = seen

    def run(self, stage, overrides):
        return self._seen

    def baseline(self, trial):
        return of_runs.Seen(parts=PLAIN)


@pytest.mark.parametrize(
    ("seen", "kind", "of_an_exception"),
    [
        (of_runs.Seen(parts=PLAIN), "nothing", "excepted"),
        (of_runs.Seen(parts={**PLAIN, "weights": "2"}), "left", "stale"),
        (of_runs.Seen(parts={**PLAIN, "more": "1"}), "left", "stale"),
        (of_runs.Seen(parts={**PLAIN, "computation": "{a}"}), "computed", "stale"),
        (of_runs.Seen(refused=[["training.beta", "not read", ""]]), "refused", "stale"),
        (of_runs.Seen(refused=[["training.beta", "found 7", "Allowed: 0"]]), "unfit", "excepted"),
        (of_runs.Seen(refused=[["training.alpha", "not read", ""]]), "unfit", "excepted"),
        (of_runs.Seen(failed="KeyError: x"), "failed", "failed"),
    ],
    ids=["the same", "weights", "a file more", "computation", "refused", "another value allowed", "another key refused", "a crash"],
)
def test_verdicts(seen, kind, of_an_exception):
    assert effects.verdict(of_trials.Trial("dpo", "beta", "7"), Known(seen))[0] == kind
    assert effects.verdict(of_trials.Trial("dpo", "beta", "7", exception="a GPU"), Known(seen))[0] == of_an_exception
    assert (kind in effects.PASSED) == (kind in ("left", "computed", "refused"))

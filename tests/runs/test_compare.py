"""The comparison of two runs, from hand-written directories: it lists differences with causes before effects."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from html_page import Page

from llmmod.errors import ConfigError
from llmmod.runs.compare import comparison_page, differences, first_cause, lines, open_run


def write(directory, **changes):
    """A run's directory; `changes` replace the usual values."""
    log = [{"step": 0, "eval_loss": 3.0, "eval_runtime": 1.0}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": changes.get("loss", 1.5)}]
    record = {
        "status": "completed",
        "versions": {"torch": changes.get("torch", "2.13.0")},
        "git_revision": "abc",
        "code": changes.get("code", "0" * 64),
        "data": [{"step": "train", "name": "qa", "content": {"qa": changes.get("rows", "d1")}, "lines": ["2 rows"]}],
        "steps": [{"name": "train", "status": "completed"}],
    }
    files = {
        "run.json": record,
        "metrics.json": {"eval_loss": changes.get("eval_loss", 0.5), "train_runtime": changes.get("seconds", 1.0)},
        ".hydra/config.yaml": {"seed": changes.get("seed", 1), "output_dir": str(directory), "hub": {"token": changes.get("token")}},
        "train/trainer_state.json": {"log_history": log},
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps(content, ensure_ascii=False))
    (directory / "train/adapter_model.safetensors").write_bytes(changes.get("weights", b"same"))
    (directory / "train/checkpoint-2").mkdir()
    (directory / "train/checkpoint-2/model.safetensors").write_bytes(str(directory).encode())
    return directory


def compared(tmp_path, **changes):
    one, other = (open_run(str(write(tmp_path / name, **given)), "runs") for name, given in (("one", {}), ("other", changes)))
    found = differences(one, other)
    return {section.name: [tuple(difference) for difference in section.differences] for section in found}, (one, other, found)


def test_runs_that_came_to_the_same_have_no_difference(tmp_path):
    found, parts = compared(tmp_path, seconds=9.0)
    assert found == {key: [] for key in ["configuration", "data", "versions", "code", "metrics", "history", "weights"]}
    assert first_cause(parts[2]) == ""
    assert "weights: the same" in lines(*parts)


def test_what_differs_in_the_order_of_causes(tmp_path):
    changes = {"seed": 2, "rows": "d2", "torch": "2.14.0", "code": "1" * 64, "eval_loss": 0.25, "loss": 1.25, "weights": b"other"}
    found, parts = compared(tmp_path, **changes)
    assert found["configuration"] == [("seed", "1", "2")]
    assert found["data"] == [("rows of qa", "d1", "d2")]
    assert found["versions"] == [("torch", "2.13.0", "2.14.0")]
    assert found["code"] == [("llmmod's files", "0" * 64, "1" * 64)]
    assert found["metrics"] == [("eval_loss", "0.5", "0.25")]
    assert found["history"] == [("train, step 2: loss", "1.5", "1.25")]
    assert [difference[0] for difference in found["weights"]] == ["train/adapter_model.safetensors"]
    assert first_cause(parts[2]) == "configuration: seed 1 -> 2"
    assert list(found) == ["configuration", "data", "versions", "code", "metrics", "history", "weights"]


def test_a_secret_is_in_neither_text_nor_page(tmp_path):
    _, parts = compared(tmp_path, token="hf_secret")
    assert "hf_secret" not in "\n".join(lines(*parts)) + comparison_page(*parts)


def test_the_page_is_whole_and_what_runs_say_is_text(tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>{{ 7*7 }}"
    _, parts = compared(tmp_path, seed=hostile, loss=1.25)
    html = comparison_page(*parts)
    page = Page(html)
    assert hostile in page.text
    assert "img" not in page.tags
    assert html.count("<script") == 1
    assert page.said("lines").startswith("\ntrain: loss")


def test_records_that_are_missing_are_said_to_be(tmp_path):
    write(tmp_path / "one")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "run.json").write_text("{}")
    one, other = (open_run(str(tmp_path / name), "runs") for name in ("one", "bare"))
    assert "configuration: not known (a run lacks .hydra/config.yaml)" in lines(one, other, differences(one, other))


@pytest.mark.parametrize(("name", "found"), [("nowhere", "nowhere is not a directory"), ("empty", "empty doesn't have a run.json")])
def test_a_directory_without_a_run_is_refused(tmp_path, name, found):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=found):
        open_run(str(tmp_path / name), "steps.compare.runs")


def test_the_step_prints_it_and_imports_no_torch(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "other", seed=2)
    runs = f"steps.compare.runs=[{tmp_path / 'one'},{tmp_path / 'other'}]"
    script = f"""
import sys
from llmmod.app import run_command
code = run_command(["llmmod", "pipeline=[compare]", {runs!r}, "output_dir={tmp_path / "compared"}"])
print("exit code", code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert "exit code 0 False" in done.stdout, done.stdout + done.stderr
    assert "  seed  1 -> 2" in done.stdout
    assert (tmp_path / "compared/compare/compare.html").is_file()
    assert Path(tmp_path / "compared/report.html").is_file()

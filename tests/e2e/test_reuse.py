"""A run of several training steps reuses those of an earlier run whose inputs haven't changed."""

from __future__ import annotations

import json

import pytest
from checkpoint import checkpoint, overrides_of, rows

import llmmod
from llmmod.steps import train

__all__ = ["checkpoint", "rows"]


@pytest.fixture
def run(checkpoint, rows, tmp_path, monkeypatch):
    """A function that trains two steps, the second on the first one's model, and evaluates; it returns metrics and each `reused_from`."""
    monkeypatch.setenv("LLMMOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("llmmod.reuse.fingerprint._own_code", lambda: "ours")  # the checkout may change while tests run
    two = ["experiment=stages", *overrides_of(checkpoint, rows), "steps.second.model={from_step: first}"]
    two += [f"steps.{step}.training.{field}" for step in ("first", "second") for field in ("max_steps=2", "eval_on_start=false")]

    def run(name, *more):
        metrics = llmmod.run(llmmod.compose([*two, f"output_dir={tmp_path / name}", *more]))
        steps = json.loads((tmp_path / name / "run.json").read_text())["steps"]
        return metrics, {step["name"]: step["reused_from"] for step in steps if "reused_from" in step}

    return run


RATE = "steps.second.training.learning_rate=1e-3"


def weights(tmp_path, *names):
    return (tmp_path.joinpath(*names) / "adapter_model.safetensors").read_bytes()


@pytest.mark.curves
def test_unchanged_steps_are_reused_with_a_message(run, tmp_path, caplog):
    caplog.set_level("INFO", "llmmod.train")
    metrics, reused = run("one")
    assert reused == {}
    changed, reused = run("two", RATE, "steps.first.training.logging_steps=1")
    assert reused == {"first": str(tmp_path / "one" / "first")}
    assert "first: reused, since its inputs haven't changed since" in caplog.text
    assert f"second: trained, since this differs from {tmp_path / 'one' / 'second'}: training.learning_rate" in caplog.messages
    assert changed["first/train_loss"] == metrics["first/train_loss"]
    assert changed["first/eval_loss"] == metrics["first/eval_loss"]
    assert weights(tmp_path, "two", "first") == weights(tmp_path, "one", "first")
    assert (tmp_path / "two" / "first" / "training_loss.png").is_file()
    # The step after a reused one gives the same as in a run that trains everything.
    anew, reused = run("three", RATE, "reuse=false")
    assert reused == {}
    assert weights(tmp_path, "three", "second") == weights(tmp_path, "two", "second") != weights(tmp_path, "one", "second")
    assert anew["eval_loss"] == pytest.approx(changed["eval_loss"], rel=1e-6)
    # If nothing has changed, the steps after training still have a model.
    same, reused = run("four")
    assert reused == {"first": str(tmp_path / "three" / "first"), "second": str(tmp_path / "one" / "second")}
    assert same["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-6)


def test_a_failed_run_continues_where_it_failed(run, tmp_path, monkeypatch):
    trainer_from = train.trainer_from

    def failing(conf, **given):
        if "second" in given["args"].output_dir:
            raise RuntimeError("no power")
        return trainer_from(conf, **given)

    monkeypatch.setattr(train, "trainer_from", failing)
    with pytest.raises(Exception, match="no power"):
        run("one")
    monkeypatch.setattr(train, "trainer_from", trainer_from)
    (tmp_path / "one" / "run.json").unlink()
    metrics, reused = run("one")
    assert reused == {"first": str(tmp_path / "one" / "first")}
    assert "second/train_loss" in metrics

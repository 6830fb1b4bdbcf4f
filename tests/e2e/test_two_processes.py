"""Two runs of several stages with two processes: they agree on reused steps, and only one writes."""

from __future__ import annotations

import json

import pytest
from by_two import by_two
from checkpoint import checkpoint, overrides_of, rows

__all__ = ["checkpoint", "rows"]


RATES = {"first": 1e-3, "second": 1e-2}


def several(checkpoint, rows):
    """Runs of sft and ppo that differ in ppo's learning rate: name -> overrides."""
    chosen = ["experiment=rlhf", *overrides_of(checkpoint, rows), "pipeline=[sft,ppo]"]
    chosen += ["~steps.ppo.training.reward.step", "steps.sft.dataset=null", "steps.ppo.dataset=null"]
    chosen += ["steps.sft.training.max_steps=2", "steps.ppo.training.max_steps=4", "steps.ppo.training.max_completion_length=4"]
    chosen += [f"steps.{step}.training.per_device_train_batch_size=1" for step in ("sft", "ppo")]
    return {name: [*chosen, f"steps.ppo.training.learning_rate={rate}"] for name, rate in RATES.items()}


@pytest.mark.slow
def test_sft_then_ppo_and_again(checkpoint, rows, tmp_path, warm_python):
    runs = [[*overrides, f"output_dir={tmp_path / name}"] for name, overrides in several(checkpoint, rows).items()]
    said = by_two(runs, tmp_path / "cache", warm_python)
    sft, ppo = json.loads((tmp_path / "second" / "run.json").read_text())["steps"]
    assert (sft["reused_from"], "reused_from" in ppo) == (str(tmp_path / "first" / "sft"), False)
    assert said.count("sft: reused") <= 1
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in RATES)
    assert first["sft/train_loss"] == second["sft/train_loss"]
    assert second["ppo/train_runtime"] != first["ppo/train_runtime"]
    for step, curves in {"sft": {"training_loss.png"}, "ppo": {"training_loss.png", "ppo.png"}}.items():
        assert {path.name for path in (tmp_path / "first" / step).glob("*.png")} == curves

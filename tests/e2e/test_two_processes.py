"""Several stages by two processes together: they train, they agree on what is reused, they measure what one does, and one writes."""

from __future__ import annotations

import json

import pytest
from by_two import by_two
from checkpoint import checkpoint, overrides_of, rows

import llmmod

__all__ = ["checkpoint", "rows"]


def metrics_of(run_dir):
    return json.loads((run_dir / "metrics.json").read_text())


@pytest.mark.slow
def test_sft_then_ppo_and_again(checkpoint, rows, tmp_path):
    chosen = ["experiment=rlhf", *overrides_of(checkpoint, rows), "pipeline=[sft,ppo]"]
    chosen += ["~steps.ppo.training.reward.step", "steps.sft.dataset=null", "steps.ppo.dataset=null"]
    chosen += ["steps.sft.training.max_steps=2", "steps.ppo.training.max_steps=4", "steps.ppo.training.max_completion_length=4"]
    chosen += [f"steps.{step}.training.per_device_train_batch_size=1" for step in ("sft", "ppo")]
    rates = {"one": 1e-3, "two": 1e-2}
    changed = [[f"steps.ppo.training.learning_rate={rate}", f"output_dir={tmp_path / name}"] for name, rate in rates.items()]
    told = by_two([[*chosen, *more] for more in changed], tmp_path / "cache")
    sft, ppo = json.loads((tmp_path / "two" / "run.json").read_text())["steps"]
    assert (sft["reused_from"], "reused_from" in ppo) == (str(tmp_path / "one" / "sft"), False)
    assert told.count("sft: reused") <= 1
    first, second = (metrics_of(tmp_path / name) for name in rates)
    assert first["sft/train_loss"] == second["sft/train_loss"]
    assert second["ppo/train_runtime"] != first["ppo/train_runtime"]


# Of fifteen batches of held-out examples one process has eight and the other seven: none may count twice, and none be left out.
STAGES = {"sft": [], "rm": [], "dpo": ["training.loss_type=[sigmoid,sft]"], "kto": ["training.loss_type=apo_zero_unpaired"]}
UNEQUAL = ("train_", "eval_kl")  # trl has the former of the first process alone; the latter goes by the batch


@pytest.mark.slow
def test_two_train_and_measure_as_one_does(checkpoint, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMMOD_CACHE", str(tmp_path / "cache"))
    model = [key for key in overrides_of(checkpoint, rows) if key.startswith(("model.", "render="))]
    settings = ["training.max_steps=2", "training.train_sampling_strategy=sequential", "training.per_device_eval_batch_size=3"]

    def overrides(stage, where, size):
        own = [*STAGES[stage], f"output_dir={tmp_path / where / stage}", f"training.per_device_train_batch_size={size}"]
        return [f"stage={stage}", "finetune=full", "pipeline=[train]", "dataset.max_samples=12", *model, *settings, *own]

    by_two([overrides(stage, "two", 1) for stage in STAGES], tmp_path / "cache")
    for stage in STAGES:
        alone = llmmod.run(llmmod.compose(overrides(stage, "one", 2)))
        together = metrics_of(tmp_path / "two" / stage)
        expected = {name: value for name, value in alone.items() if not name.startswith(UNEQUAL)}
        assert {name: together.get(name) for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5), stage

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


# Of fifteen batches of held-out examples one process has eight and the other seven: none may count twice, and none be left out.
STAGES = {"sft": [], "rm": [], "dpo": ["training.loss_type=[sigmoid,sft]"], "kto": ["training.loss_type=apo_zero_unpaired"]}
UNEQUAL = ("train_", "eval_kl")  # trl has the former of the first process alone; the latter goes by the batch
RATES = {"first": 1e-3, "second": 1e-2}


def several(checkpoint, rows):
    """Runs of sft and ppo that differ in ppo's learning rate: name -> overrides."""
    chosen = ["experiment=rlhf", *overrides_of(checkpoint, rows), "pipeline=[sft,ppo]"]
    chosen += ["~steps.ppo.training.reward.step", "steps.sft.dataset=null", "steps.ppo.dataset=null"]
    chosen += ["steps.sft.training.max_steps=2", "steps.ppo.training.max_steps=4", "steps.ppo.training.max_completion_length=4"]
    chosen += [f"steps.{step}.training.per_device_train_batch_size=1" for step in ("sft", "ppo")]
    return {name: [*chosen, f"steps.ppo.training.learning_rate={rate}"] for name, rate in RATES.items()}


def single(checkpoint, rows, size):
    """A run of each stage with a batch of this size on each process: name -> overrides."""
    model = [key for key in overrides_of(checkpoint, rows) if key.startswith(("model.", "render="))]
    settings = ["training.max_steps=2", "training.train_sampling_strategy=sequential", "training.per_device_eval_batch_size=3"]
    settings += ["finetune=full", "pipeline=[train]", "dataset.max_samples=12", f"training.per_device_train_batch_size={size}"]
    return {stage: [f"stage={stage}", *model, *settings, *own] for stage, own in STAGES.items()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture
def together(directory, checkpoint, rows, warm_python):
    """The directory with all runs by two processes, which are begun once for both tests, and what they wrote to stderr."""
    said = directory / "said.txt"
    if not said.exists():
        runs = several(checkpoint, rows) | single(checkpoint, rows, 1)
        chosen = [[*overrides, f"output_dir={directory / name}"] for name, overrides in runs.items()]
        said.write_text(by_two(chosen, directory / "cache", warm_python), encoding="utf-8")
    return directory, said.read_text(encoding="utf-8")


@pytest.mark.slow
def test_sft_then_ppo_and_again(together):
    directory, said = together
    sft, ppo = json.loads((directory / "second" / "run.json").read_text())["steps"]
    assert (sft["reused_from"], "reused_from" in ppo) == (str(directory / "first" / "sft"), False)
    assert said.count("sft: reused") <= 1
    first, second = (metrics_of(directory / name) for name in RATES)
    assert first["sft/train_loss"] == second["sft/train_loss"]
    assert second["ppo/train_runtime"] != first["ppo/train_runtime"]


@pytest.mark.slow
def test_two_train_and_measure_as_one_does(together, checkpoint, rows, tmp_path, monkeypatch):
    directory, _ = together
    monkeypatch.setenv("LLMMOD_CACHE", str(tmp_path / "cache"))
    for stage, overrides in single(checkpoint, rows, 2).items():
        alone = llmmod.run(llmmod.compose([*overrides, f"output_dir={tmp_path / stage}"]))
        measured = metrics_of(directory / stage)
        expected = {name: value for name, value in alone.items() if not name.startswith(UNEQUAL)}
        assert {name: measured.get(name) for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5), stage

"""`llmmod stage=grpo smoke=true` for families that differ in attention, head and layout, by way to fine-tune; also after rm."""

from __future__ import annotations

import json
import math

import pytest

import llmmod

CELLS = [pytest.param("llama", "full", marks=pytest.mark.curves), ("falcon", "freeze"), ("baichuan_13b", "lora"), ("gemma3", "qlora")]


@pytest.mark.parametrize(("model", "way"), CELLS)
def test_cell(model, way, tmp_path):
    """With two passes over the answers, their logps at the first step are compared with those at sampling."""
    run = tmp_path / "run"
    chosen = ["stage=grpo", f"model={model}", f"finetune={way}", "smoke=true", "pipeline=[train,export]", f"output_dir={run}"]
    more = ["training.save_strategy=no", "training.num_iterations=2", "training.beta=0.1", "training.epsilon=1e-5"]
    metrics = llmmod.run(llmmod.compose([*chosen, *more]))
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["eval_reward_before"] >= 0.0
    assert {"eval_reward_se_before", "eval_reward_se"} <= metrics.keys()
    assert metrics["eval_completions/mean_length"] <= 16
    entry = next(e for e in json.loads((run / "train" / "trainer_state.json").read_text())["log_history"] if "loss" in e)
    # At the first step, the policy, the sampling model and the reference are the same, so their logps must agree in every family.
    assert entry["clip_ratio/region_mean"] == 0.0
    assert abs(entry["kl"]) < 1e-9
    assert (run / "export" / "model.safetensors").is_file()
    saved = "adapter_model.safetensors" if way in ("lora", "qlora") else "model.safetensors"
    drawn = {"grpo.png"} if model == "llama" else set()
    assert {saved, "samples.jsonl"} | drawn <= {path.name for path in (run / "train").iterdir()}


def test_against_the_reward_model_of_an_earlier_step(tmp_path):
    steps = [f"+step@steps.{name}=train" for name in ("rm", "grpo")]
    stages = ["+stage@steps.rm.training=rm", "+stage@steps.grpo.training=grpo", "+dataset@steps.grpo.dataset=llmmod_prompts"]
    chosen = [*steps, *stages, "dataset=llmmod_pairs", "pipeline=[rm,grpo]", "steps.grpo.training.reward.step=rm", "smoke=true"]
    metrics = llmmod.run(llmmod.compose([*chosen, f"output_dir={tmp_path / 'run'}"]))
    assert all(math.isfinite(value) for value in metrics.values())
    lines = [json.loads(line) for line in (tmp_path / "run" / "grpo" / "samples.jsonl").read_text().splitlines()]
    assert len({line["reward"] for line in lines}) > 1
    assert not [path for path in (tmp_path / "run" / "grpo").iterdir() if path.is_dir() and "reward" in path.name]

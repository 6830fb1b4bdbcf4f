"""`llmmod stage=ppo smoke=true` for families that differ in attention, head and layout, by way to fine-tune; also after rm."""

from __future__ import annotations

import json
import math

import pytest

import llmmod

CELLS = [
    pytest.param("llama", "full", marks=pytest.mark.curves), ("chatglm2", "qlora"), ("bloom", "lora"), ("falcon", "freeze"),
    ("baichuan_13b", "lora"), ("gemma3", "qlora"), ("phi1_5", "lora"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "way"), CELLS)
def test_cell(model, way, tmp_path):
    chosen = ["stage=ppo", f"model={model}", f"finetune={way}", "smoke=true", "pipeline=[train,export]", f"output_dir={tmp_path / 'run'}"]
    metrics = llmmod.run(llmmod.compose([*chosen, "training.save_strategy=no"]))
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["eval_reward_before"] >= 0.0
    assert {"eval_reward_se_before", "eval_reward_se"} <= metrics.keys()
    assert metrics["eval_answer_length"] <= 16
    entry = next(e for e in json.loads((tmp_path / "run" / "train" / "trainer_state.json").read_text())["log_history"] if "loss" in e)
    # At the first step, the policy, the sampling model and the reference are the same, so their logps must agree in every family.
    assert entry["approx_kl"] < 1e-6
    assert abs(entry["kl"]) < 1e-3
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
    saved = "adapter_model.safetensors" if way in ("lora", "qlora") else "model.safetensors"
    drawn = {"ppo.png"} if model == "llama" else set()
    assert {saved, "value_head.safetensors", "samples.jsonl"} | drawn <= {path.name for path in (tmp_path / "run" / "train").iterdir()}


@pytest.mark.parametrize("way", ["lora", "full"])
def test_against_the_reward_model_of_an_earlier_step(way, tmp_path):
    steps = [f"+step@steps.{name}=train" for name in ("rm", "ppo")]
    stages = ["+stage@steps.rm.training=rm", "+stage@steps.ppo.training=ppo", "+dataset@steps.ppo.dataset=llmmod_prompts"]
    chosen = [*steps, *stages, "dataset=llmmod_pairs", "pipeline=[rm,ppo]", "steps.ppo.training.reward.step=rm", "smoke=true"]
    metrics = llmmod.run(llmmod.compose([*chosen, f"finetune={way}", f"output_dir={tmp_path / 'run'}"]))
    assert all(math.isfinite(value) for value in metrics.values())
    lines = [json.loads(line) for line in (tmp_path / "run" / "ppo" / "samples.jsonl").read_text().splitlines()]
    assert len({line["score"] for line in lines}) > 1
    if way == "lora":
        assert not [path for path in (tmp_path / "run" / "ppo").iterdir() if path.is_dir() and "reward" in path.name]

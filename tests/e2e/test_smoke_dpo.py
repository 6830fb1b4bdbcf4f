"""`llmmod stage=dpo smoke=true` for models that share a pair's prompt and for models that can't, by each way to fine-tune."""

from __future__ import annotations

import json
import math

import pytest
from cells import matrix
from checkpoint import checkpoint, overrides_of, rows

from llmmod import compose, run

__all__ = ["checkpoint", "rows"]
CELLS = [("llama", "full"), ("chatglm2", "qlora"), ("bloom", "lora"), ("falcon", "freeze"), ("baichuan_13b", "lora")]


@pytest.mark.parametrize(("model", "way"), CELLS)
def test_cell(model, way, tmp_path):
    matrix.run_cell(model, way, tmp_path, stage="dpo")
    metrics = json.loads((tmp_path / f"{model}-{way}" / "metrics.json").read_text())
    assert metrics["eval_loss_before"] == pytest.approx(math.log(2), abs=1e-5)  # the model is its own reference
    assert metrics["eval_rewards/margins"] != 0


def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(checkpoint, rows, tmp_path):
    saving = [
        "training.save_strategy=steps",
        "training.save_steps=1",
        "training.save_total_limit=3",
        "training.per_device_train_batch_size=2",
    ]
    pairs = ["dataset.format=preference", "dataset.columns={prompt: prompt, chosen: chosen, rejected: rejected}"]
    tiny = [key for key in overrides_of(checkpoint, rows) if not key.startswith("dataset.columns.")]
    chosen = ["stage=dpo", "pipeline=[train]", *tiny, *pairs, *saving]
    run(compose([*chosen, f"output_dir={tmp_path / 'whole'}"]))
    before = tmp_path / "whole" / "train" / "checkpoint-1"
    run(compose([*chosen, f"training.resume_from_checkpoint={before}", f"output_dir={tmp_path / 'resumed'}"]))
    whole, resumed = ((tmp_path / name / "train" / "adapter_model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed
    assert whole != (before / "adapter_model.safetensors").read_bytes()

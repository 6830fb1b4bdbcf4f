"""`llmmod stage=kto smoke=true` for different families and each way to fine-tune."""

from __future__ import annotations

import json

import pytest
from cells import matrix

CELLS = [("llama", "full"), ("chatglm2", "qlora"), ("bloom", "lora"), ("falcon", "freeze"), ("baichuan_13b", "lora")]


@pytest.mark.parametrize(("model", "way"), CELLS)
def test_cell(model, way, tmp_path):
    matrix.run_cell(model, way, tmp_path, stage="kto")
    metrics = json.loads((tmp_path / f"{model}-{way}" / "metrics.json").read_text())
    assert metrics["eval_loss_before"] == pytest.approx(0.5, abs=1e-5)  # the model is its own reference
    assert metrics["eval_rewards/margins"] != 0

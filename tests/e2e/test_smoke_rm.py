"""A rehearsal of rm through train, evaluate and export, for different families; the cells of benchmarks/matrix.py.

transformers alone loads the export (for Baichuan 13B, llmmod does), which scores as the trained model does.
"""

from __future__ import annotations

import json

import pytest
from cells import matrix


@pytest.mark.parametrize(
    ("model", "way"),
    [("chatglm2", "lora"), ("baichuan_13b", "full"), ("bloom", "qlora"), ("falcon", "freeze"), ("phi1_5", "lora")],
)
def test_cell(model, way, tmp_path):
    difference = matrix.run_cell(model, way, tmp_path, stage="rm")
    assert difference <= matrix.MAX_LOSS_DIFFERENCE[way]
    assert 0 <= json.loads((tmp_path / f"{model}-{way}" / "metrics.json").read_text())["eval_accuracy"] <= 1

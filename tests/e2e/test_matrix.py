"""Every architecture × every way to fine-tune, through train, evaluate, export and loading again, in one process.

One option represents all those of the same architecture; benchmarks/matrix.py defines the cells, and runs every option.
"""

from __future__ import annotations

import json

import pytest
import yaml
from cells import FILE, matrix

pytestmark = pytest.mark.slow


# For how they differ, see `architecture` in their files.
MODELS = (
    "chatglm2", "llama2", "internlm", "baichuan_13b", "bloom", "falcon", "qwen", "qwen3", "gemma3", "phi1_5", "phi4_mini", "glm4",
)  # fmt: skip
LIKE_LLAMA = {"mistral"}  # another class, the same computation


# At a rehearsal's own learning rate, two steps hardly change the logits, so a lost adapter would hardly show.
RATE = "training.learning_rate=5e-3"
NEAR = {**matrix.MAX_LOSS_DIFFERENCE, "lora": 1e-5, "qlora": 1e-5}


@pytest.mark.report  # a report of each kind of run can be written
@pytest.mark.parametrize("way", matrix.WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_cell(model, way, tmp_path):
    assert matrix.run_cell(model, way, tmp_path, overrides=(RATE,)) <= NEAR[way]
    run = tmp_path / f"{model}-{way}"
    assert "Completed" in (run / "report.html").read_text(encoding="utf-8")
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["eval_loss"] < metrics["eval_loss_before"] - 1e-3
    adapted = way in ("lora", "qlora")
    assert (run / "train" / "adapter_model.safetensors").is_file() is adapted
    assert (run / "export" / "model.safetensors").is_file()
    assert "quantization_config" not in json.loads((run / "export" / "config.json").read_text())


def test_every_architecture_has_a_model_here():
    def model_type(option):
        return yaml.safe_load((FILE.parents[1] / "conf" / "model" / f"{option}.yaml").read_text())["architecture"]["model_type"]

    assert {model_type(option) for option in matrix.options()} - LIKE_LLAMA <= {model_type(option) for option in MODELS}

"""Every architecture × every way to fine-tune, through train, evaluate, export and loading again, in one process.

One option stands for those of the same architecture; benchmarks/matrix.py, whose cells these are, runs them all.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

_FILE = Path(__file__).parents[2] / "benchmarks" / "matrix.py"
_spec = importlib.util.spec_from_file_location("matrix", _FILE)
matrix = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(matrix)

# What sets each apart: see `architecture` in its file.
MODELS = (
    "chatglm2", "llama2", "internlm", "baichuan_13b", "bloom", "falcon", "qwen", "qwen3", "gemma3", "phi1_5", "phi4_mini", "glm4",
)  # fmt: skip
LIKE_LLAMA = {"mistral"}  # another class, the same computation


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny matrices are slower on two threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("way", matrix.WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_cell(model, way, tmp_path):
    matrix.run_cell(model, way, tmp_path)
    run = tmp_path / f"{model}-{way}"
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    adapted = way in ("lora", "qlora")
    assert (run / "train" / "adapter_model.safetensors").is_file() is adapted
    assert (run / "export" / "model.safetensors").is_file()
    assert "quantization_config" not in json.loads((run / "export" / "config.json").read_text())


def test_every_architecture_has_a_model_here():
    def model_type(option):
        return yaml.safe_load((_FILE.parents[1] / "conf" / "model" / f"{option}.yaml").read_text())["architecture"]["model_type"]

    assert {model_type(option) for option in matrix.options()} - LIKE_LLAMA <= {model_type(option) for option in MODELS}

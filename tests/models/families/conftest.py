"""The checkpoints in layouts of 2023, and what the original code computes from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

CHECKPOINTS = Path(__file__).parents[1] / "legacy_checkpoints"
NATIVE = {  # checkpoint -> the class it becomes
    "chatglm2": "GlmForCausalLM",
    "qwen": "Qwen2ForCausalLM",
    "internlm_7b": "LlamaForCausalLM",
    "baichuan_7b": "LlamaForCausalLM",
    "baichuan2_7b": "LlamaForCausalLM",
    "baichuan_13b": "BaichuanForCausalLM",
}


@pytest.fixture(params=sorted(NATIVE))
def name(request):
    """Each checkpoint in turn."""
    return request.param


@pytest.fixture
def load():
    """Name of a checkpoint -> the model, in float32."""
    from llmmod.models.loading.load import load_model

    return lambda name, **arguments: load_model(str(CHECKPOINTS / name), **{"dtype": "float32"} | arguments)


@pytest.fixture
def reference():
    """Name of a checkpoint -> what the original code computed from it."""
    from safetensors.torch import load_file

    return lambda name: load_file(CHECKPOINTS / name / "reference.safetensors")


@pytest.fixture
def copied(tmp_path):
    """Name of a checkpoint, changes to its config.json -> a changed copy of its directory; None removes the field."""

    def copy(name, **changes):
        directory = tmp_path / name
        shutil.copytree(CHECKPOINTS / name, directory, ignore=shutil.ignore_patterns("reference.*"))
        config = json.loads((directory / "config.json").read_text()) | changes
        (directory / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        return directory

    return copy

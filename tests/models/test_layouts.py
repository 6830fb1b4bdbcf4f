"""Checkpoints of a layout that can't be loaded are refused by name, before their weights are read."""

from __future__ import annotations

import json

import pytest

from llmmod.errors import ConfigError
from llmmod.models.load import load_model
from llmmod.models.tokenizer import load_tokenizer


def checkpoint(tmp_path, **config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_text("never read")
    (tmp_path / "tokenizer.model").write_text("never read")
    return str(tmp_path)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize(
    ("model_type", "name"),
    [("RefinedWeb", "Falcon"), ("RefinedWebModel", "Falcon")],
)
@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}], ids=["as it is", "trusted"])
def test_layouts_of_2023_that_nothing_converts(tmp_path, load, model_type, name, trust):
    path = checkpoint(tmp_path, model_type=model_type, auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(ConfigError, match=rf"\(model_type {model_type}: {name}.*can't be loaded") as error:
        load(path, **trust)
    assert error.value.exit_code == 2


def test_a_layout_that_only_its_own_code_reads(tmp_path):
    path = checkpoint(tmp_path, model_type="newest", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    with pytest.raises(ConfigError, match=r"no model_type newest.* model.trust_remote_code=true runs the Python code"):
        load_model(path)


def test_a_layout_that_nothing_reads(tmp_path):
    with pytest.raises(ConfigError, match=r"no model_type newest, which config.json of .* names"):
        load_model(checkpoint(tmp_path, model_type="newest"))

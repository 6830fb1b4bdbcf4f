"""Checkpoints of a layout that can't be loaded are refused by name before their weights are read."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from llmmod.errors import ConfigError
from llmmod.instantiate import build
from llmmod.models.loading.load import load_model
from llmmod.models.loading.tokenizer import load_tokenizer


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
    with pytest.raises(ConfigError, match=r"doesn't have the model_type newest.* model.trust_remote_code=true runs its own Python code"):
        load_model(path)


def test_a_layout_that_nothing_reads(tmp_path):
    with pytest.raises(ConfigError, match=r"doesn't have the model_type newest, which config.json of .* names"):
        load_model(checkpoint(tmp_path, model_type="newest"))


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class NewestConfig(LlamaConfig):
    model_type = "newest"

class NewestModel(LlamaForCausalLM):
    config_class = NewestConfig

class NewestTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def with_code(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    """A checkpoint of a model and a tokenizer that only their own code can load."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = tmp_path / "newest"
    tiny_llama.save_pretrained(directory)
    tiny_tokenizer.save_pretrained(directory)
    classes = {"AutoConfig": "code.NewestConfig", "AutoModelForCausalLM": "code.NewestModel"}
    for file, changes in {
        "config.json": {"model_type": "newest", "auto_map": classes},
        "tokenizer_config.json": {"tokenizer_class": "NewestTokenizer", "auto_map": {"AutoTokenizer": [None, "code.NewestTokenizer"]}},
    }.items():
        (directory / file).write_text(json.dumps(json.loads((directory / file).read_text()) | changes))
    (directory / "code.py").write_text(OWN_CODE)
    return str(directory)


def test_trusted_code_is_run_and_said_to_be(with_code, tiny_llama, ids, logits, caplog):
    model = load_model(with_code, trust_remote_code=True)
    assert type(model).__name__ == "NewestModel"
    assert torch.equal(logits(model, ids), logits(tiny_llama, ids))
    assert f"Python code of '{with_code}' was run with all your rights, and defines NewestModel." in caplog.text
    caplog.clear()
    assert load_tokenizer(with_code, trust_remote_code=True)("Hello").input_ids
    assert "was run with all your rights, and defines NewestTokenizer" in caplog.text


@pytest.mark.parametrize(
    "read",
    [
        load_tokenizer,
        lambda path: build({"_target_": "transformers.AutoTokenizer.from_pretrained", "pretrained_model_name_or_path": path}),
        lambda path: build({"_target_": "transformers.AutoConfig.from_pretrained", "pretrained_model_name_or_path": path}),
    ],
    ids=["ours", "tokenizer", "config"],
)
def test_nobody_is_asked_whether_code_may_run(with_code, read, monkeypatch, capfd):
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail(f"asked: {prompt}"))
    with pytest.raises(ConfigError) as error:
        read(with_code)
    assert f"'{with_code}' needs its own Python code. " in str(error.value)
    ours = "If you trust whoever made it, add model.trust_remote_code=true to the command line, or set LLMMOD_TRUST_REMOTE_CODE=1."
    assert str(error.value).endswith((ours, "Only a model's own code can be allowed, with model.trust_remote_code."))
    assert "Do you wish" not in "".join(capfd.readouterr())


def test_trust_that_was_not_needed(llama_directory, caplog):
    with caplog.at_level(logging.INFO):
        load_model(str(llama_directory), trust_remote_code=True)
    assert f"the code of '{llama_directory}' wasn't needed for LlamaForCausalLM." in caplog.text

"""Models from directories: the loaded model equals the saved one, and errors are explained."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from llmmod.errors import ConfigError
from llmmod.models.loading.load import load_model

KEY = "model.pretrained_model_name_or_path"


def test_loaded_computes_what_was_saved(tiny_llama, llama_directory, ids, logits):
    model = load_model(str(llama_directory))
    assert torch.equal(logits(model, ids), logits(tiny_llama, ids))
    assert model.config._name_or_path == str(llama_directory)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_dtype_is_the_one_asked_for(llama_directory, dtype):
    # In other tools, dtype=bfloat16 silently gave float32.
    model = load_model(str(llama_directory), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_auto_is_the_type_that_was_saved(tiny_llama, tmp_path):
    tiny_llama.to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), dtype="auto").dtype is torch.bfloat16


def test_fields_of_the_configuration_are_set_before_the_model_is_built(llama_directory):
    model = load_model(str(llama_directory), num_hidden_layers=1, attn_implementation="eager")
    assert len(model.model.layers) == 1
    assert model.config._attn_implementation == "eager"


def test_loading_info_on_request(llama_directory):
    model, info = load_model(str(llama_directory), output_loading_info=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not info["missing_keys"]


def test_weights_in_the_older_format(tiny_llama, llama_directory, ids, logits):
    (llama_directory / "model.safetensors").unlink()
    torch.save(tiny_llama.state_dict(), llama_directory / "pytorch_model.bin")
    assert torch.equal(logits(load_model(str(llama_directory)), ids), logits(tiny_llama, ids))


def edit_config(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_weights_that_do_not_fill_the_model_are_refused(llama_directory):
    # transformers fills the missing weights at random and only warns: the training would start from noise.
    edit_config(llama_directory, num_hidden_layers=3)
    with pytest.raises(ConfigError, match=r"lacks 9 weights of LlamaForCausalLM, among them model.layers.2"):
        load_model(str(llama_directory))


def test_weights_of_another_size_are_refused(llama_directory):
    edit_config(llama_directory, intermediate_size=96)
    with pytest.raises(ConfigError, match=rf"{KEY}: 6 weights of '.*' have other sizes than in its config.json") as error:
        load_model(str(llama_directory))
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_refused(llama_directory):
    (llama_directory / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ConfigError, match=r"can't be loaded"):
        load_model(str(llama_directory))


def test_a_config_that_is_no_json(llama_directory):
    (llama_directory / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"can't be loaded"):
        load_model(str(llama_directory))


def test_an_argument_that_from_pretrained_does_not_take(llama_directory):
    with pytest.raises(ConfigError, match=r"model.kwargs.low_cpu_memory: not an argument of from_pretrained"):
        load_model(str(llama_directory), low_cpu_memory=True)


def test_an_attention_that_is_not_installed(llama_directory):
    with pytest.raises(ConfigError, match=r"model.attn_implementation: 'flash_attention_2' can't be used"):
        load_model(str(llama_directory), attn_implementation="flash_attention_2")


@pytest.mark.parametrize("text", ["/no/such/model", "./missing", "a/b/c"])
def test_a_missing_directory_does_not_give_the_hubs_message_on_repo_ids(text, no_network):
    with pytest.raises(ConfigError) as error:
        load_model(text)
    assert "Repo id" not in str(error.value)
    assert no_network == []


def test_a_hub_id_without_a_hub(no_network):
    with pytest.raises(ConfigError, match=r"the hub can't be reached") as error:
        load_model("zai-org/chatglm2-6b")
    assert error.value.exit_code == 2


def test_a_directory_without_weights(llama_directory):
    (llama_directory / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"doesn't have weights"):
        load_model(str(llama_directory))


def test_what_says_nothing_of_the_checkpoint_is_left_as_it_is(llama_directory, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmmod.models.loading.load.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(OSError, match=r"No space left"):
        load_model(str(llama_directory))


def test_saved_and_moved_is_found_again(llama_directory, tmp_path, ids, logits, tiny_llama):
    moved = shutil.move(str(llama_directory), str(tmp_path / "elsewhere"))
    load_model(moved).save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load_model(str(tmp_path / "again")), ids), logits(tiny_llama, ids))

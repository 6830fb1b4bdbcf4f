"""`finetune.adapters`: a chain merged in order, the last one continued or kept, and refusal of adapters that don't fit."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch

from llmmod.config.schema.model import FullConf, LoraConf
from llmmod.errors import ConfigError
from llmmod.models.adapters.load import load_adapter, merge_adapters
from llmmod.models.adapters.setup import setup_full, setup_inference, setup_lora
from llmmod.models.loading.structure import set_name


def random_adapter(model, seed, **fields):
    """A copy of `model` with an adapter of random matrices."""
    config = peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | fields)
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.2)
    return adapted.eval()


@pytest.fixture
def chain(tiny_llama, tmp_path, logits, ids):
    """Two adapters, the second trained on top of the first: their directories, and logits after the first and after both."""
    first = random_adapter(tiny_llama, 1)
    first.save_pretrained(tmp_path / "first")
    after_first = logits(first, ids)
    second = random_adapter(first.merge_and_unload(), 2)
    second.save_pretrained(tmp_path / "second")
    return [str(tmp_path / "first"), str(tmp_path / "second")], after_first, logits(second, ids)


def lora(**fields):
    return LoraConf(**{"name": "lora", "r": 4, "task_type": "CAUSAL_LM", "target_modules": ["v_proj"]} | fields)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)  # logits are around 1, and merging rounds the weights


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_one_beside_the_weights(tiny_llama, chain, ids, logits):
    paths, after_first, _ = chain
    model = load_adapter(tiny_llama, paths[0])
    assert torch.equal(logits(model, ids), after_first)
    assert not model.training
    assert trained(model) == set()


def test_a_chain_is_merged_in_order(tiny_llama, chain, ids, logits):
    paths, _, after_both = chain
    merged = merge_adapters(tiny_llama, paths)
    assert type(merged) is type(tiny_llama)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    close(logits(merged, ids), after_both)


def test_for_inference_all_but_the_last_are_merged(tiny_llama, chain, ids, logits):
    paths, after_first, after_both = chain
    model = setup_inference(tiny_llama, lora(adapters=paths))
    close(logits(model, ids), after_both)
    assert list(model.peft_config) == ["default"]
    with model.disable_adapter():
        close(logits(model, ids), after_first)


def test_trained_anew_all_are_merged(tiny_llama, chain, ids, logits):
    paths, _, after_both = chain
    model = setup_lora(tiny_llama, lora(adapters=paths))
    close(logits(model, ids), after_both)  # a new adapter doesn't change anything yet
    assert {name.rpartition(".lora_")[0].rpartition(".")[2] for name in trained(model)} == {"v_proj"}


def test_continued_the_last_is_trained(tiny_llama, chain, ids, logits):
    paths, _, after_both = chain
    model = setup_lora(tiny_llama, lora(adapters=paths, resume_adapter=True))
    close(logits(model, ids), after_both)
    assert {name.rpartition(".lora_")[0].rpartition(".")[2] for name in trained(model)} == {"q_proj", "down_proj"}
    assert model.peft_config["default"].r == 2
    assert not model.peft_config["default"].inference_mode


def test_a_continued_adapter_is_saved_and_found_again(tiny_llama, chain, ids, logits, tmp_path):
    base = copy.deepcopy(tiny_llama)
    model = setup_lora(tiny_llama, lora(adapters=chain[0][:1], resume_adapter=True))
    model.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    assert torch.equal(logits(load_adapter(base, str(tmp_path / "again")), ids), chain[1])


def test_full_fine_tuning_starts_from_the_merged_chain(tiny_llama, chain, ids, logits):
    model = setup_full(tiny_llama, FullConf(name="full", adapters=chain[0]))
    close(logits(model, ids), chain[2])
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_loading_a_pissa_adapter_from_peft_subtracts_its_initial_values_from_the_base(tiny_llama, tmp_path, ids, logits):
    adapted = peft.get_peft_model(
        copy.deepcopy(tiny_llama), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.mul_(1.5)
    adapted.save_pretrained(tmp_path / "pissa")
    torch.testing.assert_close(logits(load_adapter(tiny_llama, str(tmp_path / "pissa")), ids), logits(adapted, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        pytest.param(lambda d: None, "is not an adapter: it doesn't have adapter_config.json", id="empty"),
        pytest.param(lambda d: (d / "config.json").write_text("{}"), "is a model, not an adapter", id="model"),
        pytest.param(lambda d: (d / "adapter_config.json").write_text("{"), "the adapter in '.*' can't be read", id="damaged"),
        pytest.param(
            lambda d: (d / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"})), "can't be read", id="no weights"
        ),
    ],
)
def test_a_directory_that_is_no_adapter(tiny_llama, tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(ConfigError, match=rf"finetune.adapters\[0\]: .*{message}"):
        merge_adapters(tiny_llama, [str(tmp_path)])


def other_model(**fields):
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(vocab_size=40, num_hidden_layers=2, **fields))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}, id="wider"),
        pytest.param({"model_type": "bloom", "hidden_size": 32, "n_head": 4}, id="another architecture"),
    ],
)
def test_an_adapter_of_another_base_is_refused(chain, model):
    with pytest.raises(
        ConfigError, match=r"finetune.adapters\[0\]: the adapter '.*first' doesn't fit .*Give the model that it was trained on"
    ):
        merge_adapters(other_model(**model), chain[0])


def test_an_adapter_of_a_deeper_base_is_refused(tiny_llama, chain):
    tiny_llama.model.layers = tiny_llama.model.layers[:1]
    with pytest.raises(ConfigError, match=r"4 are unexpected"):
        merge_adapters(tiny_llama, chain[0][:1])


def test_an_adapter_of_a_shallower_base_is_refused(tiny_llama, chain):
    tiny_llama.model.layers.append(copy.deepcopy(tiny_llama.model.layers[1]))
    with pytest.raises(ConfigError, match=r"4 of its weights are missing"):
        merge_adapters(tiny_llama, chain[0][:1])


def test_another_base_of_the_same_shape_is_warned_of(tiny_llama, tmp_path, caplog):
    set_name(tiny_llama, "meta-llama/Llama-2-7b-hf")
    random_adapter(tiny_llama, 1).save_pretrained(tmp_path / "a", save_embedding_layers=False)
    load_adapter(copy.deepcopy(tiny_llama), str(tmp_path / "a"))
    assert not caplog.records
    set_name(tiny_llama, "huggyllama/llama-7b")
    load_adapter(tiny_llama, str(tmp_path / "a"))
    assert "was trained on 'meta-llama/Llama-2-7b-hf', but is put on 'huggyllama/llama-7b'" in caplog.text

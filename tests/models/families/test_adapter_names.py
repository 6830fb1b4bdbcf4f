"""LoRA with the original code's names: targets are translated and old adapters are converted, both exactly."""

from __future__ import annotations

import json
import logging

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmmod.config.schema.model import LoraConf
from llmmod.models.adapters.load import load_adapter, merge_adapters
from llmmod.models.adapters.setup import setup_lora
from llmmod.models.families.convert import native_targets

IDS = torch.arange(3, 51).reshape(2, 24)
QKV = ["q_proj", "k_proj", "v_proj"]


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def close(found, expected):
    """Equal except for float32 rounding: logits of up to 30 differ by up to 2e-4 between instruction sets."""
    return (found - expected).abs().max() < 5e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "targets", "native"),
    [
        ("chatglm2", ["query_key_value"], QKV),
        ("chatglm2", ["dense", "dense_h_to_4h", "dense_4h_to_h"], ["o_proj", "gate_up_proj", "down_proj"]),
        ("qwen", ["c_attn"], QKV),
        ("qwen", ["attn.c_proj", "w1", "w2", "mlp.c_proj"], ["o_proj", "up_proj", "gate_proj", "down_proj"]),
        ("qwen", ["c_proj"], ["o_proj", "down_proj"]),
        ("qwen", "c_attn", QKV),
        ("baichuan_7b", ["W_pack", "o_proj"], [*QKV, "o_proj"]),
        ("baichuan_13b", ["W_pack"], QKV),
        ("chatglm2", ["q_proj"], ["q_proj"]),
        ("chatglm2", ["no_such"], ["no_such"]),
        ("chatglm2", "all-linear", "all-linear"),
        ("chatglm2", "query_key_value", QKV),
        ("chatglm2", None, None),
    ],
)
def test_targets_by_their_original_names(load, name, targets, native):
    assert native_targets(load(name), targets, key="finetune.target_modules") == native


def test_targets_of_the_older_phi():
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    with torch.device("meta"):
        model = PhiForCausalLM(config)
    assert native_targets(model, ["Wqkv", "out_proj", "fc1"], key="x") == [*QKV, "dense", "fc1"]


def test_a_model_that_has_the_name_itself_keeps_it():
    from transformers import BloomConfig, BloomForCausalLM

    with torch.device("meta"):
        model = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2))
    assert native_targets(model, ["query_key_value", "dense"], key="x") == ["query_key_value", "dense"]


def test_the_translation_is_logged(load, caplog):
    with caplog.at_level(logging.INFO):
        model = setup_lora(load("chatglm2"), LoraConf(name="lora", target_modules=["query_key_value"], r=2))
    assert "finetune.target_modules: in GlmForCausalLM, query_key_value is q_proj, k_proj, v_proj." in caplog.text
    assert {key.split(".")[-4] for key, p in model.named_parameters() if p.requires_grad} == set(QKV)


TARGETS = {
    "chatglm2": ["query_key_value", "dense_h_to_4h"],
    "qwen": ["c_attn", "c_proj", "w1"],
    "baichuan_7b": ["W_pack", "o_proj"],
    "baichuan_13b": ["W_pack"],
    "baichuan2_7b": ["W_pack"],
}


def old_adapter(base, directory, targets, **more):
    """An adapter of rank 2 with random weights under the original names, and the base's weights after merging it by hand."""
    torch.manual_seed(7)
    state, adapter = load_file(base / "model.safetensors"), {}
    for name in list(state):
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.rpartition(".")[2] in targets:
            rows, columns = state[name].shape
            a, b = torch.randn(2, columns) * 0.2, torch.randn(rows, 2) * 0.2
            adapter |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
            state[name] = state[name] + 3.0 * b @ a  # lora_alpha / r = 6 / 2
    directory.mkdir()
    save_file(adapter, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 6, "target_modules": targets} | more
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    return str(directory)


@pytest.mark.parametrize("name", TARGETS)
def test_an_old_adapter_computes_what_it_did(load, copied, tmp_path, name, caplog):
    merged_by_hand = copied(name)
    adapter = old_adapter(merged_by_hand, tmp_path / "adapter", TARGETS[name])
    with caplog.at_level(logging.INFO):
        adapted = load_adapter(load(name), adapter)
    assert "the adapter has the names of" in caplog.text
    expected = logits(load(merged_by_hand))
    assert close(logits(adapted), expected)
    assert close(logits(merge_adapters(load(name), [adapter])), expected)
    assert (expected - logits(load(name))).abs().max() > 0.1, "the adapter matters"


def test_a_pattern_for_targets_is_read_from_the_weights(load, copied, tmp_path):
    merged_by_hand = copied("qwen")
    adapter = old_adapter(merged_by_hand, tmp_path / "adapter", ["c_attn"], target_modules=".*attn.c_attn")
    assert close(logits(load_adapter(load("qwen"), adapter)), logits(load(merged_by_hand)))


def test_a_rank_by_the_original_name(load, copied, tmp_path):
    merged_by_hand = copied("baichuan_7b")
    more = {"r": 8, "lora_alpha": 24, "rank_pattern": {"W_pack": 2}, "alpha_pattern": {"W_pack": 6}}
    adapter = old_adapter(merged_by_hand, tmp_path / "adapter", ["W_pack"], **more)
    assert close(logits(load_adapter(load("baichuan_7b"), adapter)), logits(load(merged_by_hand)))


def test_an_adapter_goes_on_training_and_is_saved_natively(load, copied, tmp_path):
    adapter = old_adapter(copied("chatglm2"), tmp_path / "adapter", ["query_key_value"])
    adapted = setup_lora(load("chatglm2"), LoraConf(name="lora", adapters=[adapter], resume_adapter=True))
    assert all(p.requires_grad == ("lora_" in key) for key, p in adapted.named_parameters())
    before = logits(adapted)
    adapted.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load_adapter(load("chatglm2"), str(tmp_path / "again"))), before)


@pytest.mark.parametrize("name", ["chatglm2", "qwen", "baichuan_13b"])
def test_an_adapter_holds_nothing_of_the_base(load, name, tmp_path):
    # peft compares GlmConfig's own vocab_size, 151552, with the model's, and would write embeddings and head.
    model = setup_lora(load(name), LoraConf(name="lora", target_modules=["q_proj"], r=2))
    model.save_pretrained(tmp_path)
    assert {key.split(".")[-2] for key in load_file(tmp_path / "adapter_model.safetensors")} == {"lora_A", "lora_B"}


def test_an_adapter_that_is_native_is_left_alone(load, tmp_path):
    model = peft.get_peft_model(load("qwen"), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    before = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapter(load("qwen"), str(tmp_path))), before)

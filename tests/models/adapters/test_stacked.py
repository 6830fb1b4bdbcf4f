"""Adapters on quantized weights stay exact when a newer one is trained on top: in memory, from disk and in an export."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from ways import moved

from llmmod.config.schema.model import LoraConf, QuantizationConf
from llmmod.errors import ConfigError
from llmmod.models.adapters.load import unload_adapter
from llmmod.models.adapters.merge import merge_or_stack, merged_copy
from llmmod.models.adapters.setup import setup_inference, setup_lora
from llmmod.models.loading.quantization import quantization_config
from llmmod.models.loading.structure import rebuild_model

# A change of about 1 % of the weights: a 4-bit merge would lose nearly all of it. Logits are around 5.
CASES = [
    pytest.param(4, {}, id="4 bit"),
    pytest.param(8, {}, id="8 bit"),
    pytest.param(4, {"use_dora": True}, id="4 bit, dora"),
    pytest.param(4, {"use_rslora": True, "target_modules": ["q_proj", "lm_head"], "modules_to_save": ["norm"]}, id="4 bit, head and norm"),
]
EXACT = 1e-5
ROUNDED = {4: 1e-5, 8: 0.25}  # an 8-bit layer rounds activations; its dequantized weights don't


def adapted(model, **fields):
    conf = {"name": "qlora", "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": "all-linear"} | fields
    return moved(setup_lora(model, LoraConf(**conf)), by=0.03).eval()


def packed(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if type(p).__name__ in ("Params4bit", "Int8Params")}


@pytest.fixture
def quantized(tiny_llama):
    return lambda bits: rebuild_model(copy.deepcopy(tiny_llama), quantization_config=quantization_config(QuantizationConf(bits=bits)))


@pytest.mark.parametrize(("bits", "fields"), CASES)
def test_each_adapter_begins_where_the_last_one_ended(quantized, ids, logits, tmp_path, bits, fields):
    base = quantized(bits)
    weights = packed(base)
    alone = logits(base, ids)
    after, names = [], []
    for number in range(3):
        model = setup_lora(base, LoraConf(name="qlora", r=2, task_type="CAUSAL_LM", **{"target_modules": "all-linear"} | fields))
        expected = after[-1] if after else alone
        assert (logits(model, ids) - expected).abs().max() < EXACT
        moved(model, by=0.03)
        after.append(logits(model, ids))
        assert (after[-1] - expected).abs().max() > 100 * EXACT
        with model.disable_adapter():
            assert (logits(model, ids) - expected).abs().max() < EXACT  # the reference: base and earlier adapters
        names.append(str(tmp_path / str(number)))
        model.save_pretrained(names[-1])
        assert len(list((tmp_path / str(number)).iterdir())) == 3  # card, configuration, weights: no other adapter
        assert {name.count("stacked") for name in load_file(tmp_path / str(number) / "adapter_model.safetensors")} == {0}
        base = merge_or_stack(model)
        assert (logits(base, ids) - after[-1]).abs().max() < EXACT
        assert not hasattr(base, "peft_config")
    assert all(torch.equal(value, weights[name]) for name, value in packed(base).items())
    again = setup_inference(quantized(bits), LoraConf(name="qlora", adapters=names))
    assert (logits(again, ids) - after[-1]).abs().max() < EXACT
    whole = merged_copy(again)
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}
    assert (logits(whole, ids) - after[-1]).abs().max() < ROUNDED[bits]
    assert (logits(again, ids) - after[-1]).abs().max() < EXACT  # the original doesn't change


def test_one_adapter_comes_off_and_the_earlier_ones_stay(quantized, ids, logits):
    base = merge_or_stack(adapted(quantized(4)))
    before = logits(base, ids)
    assert torch.equal(logits(unload_adapter(adapted(base)), ids), before)


def test_a_copy_does_not_share_weights(quantized, ids, logits):
    base = merge_or_stack(adapted(quantized(4)))
    before, other = logits(base, ids), copy.deepcopy(base)
    merge_or_stack(adapted(other))
    assert torch.equal(logits(base, ids), before)


def test_the_bias_that_an_adapter_adds(quantized, ids, logits):
    found = r"finetune\.adapters: an adapter with lora_bias on quantized layers without a bias"
    with pytest.raises(ConfigError, match=found):
        merge_or_stack(adapted(quantized(4), lora_bias=True))

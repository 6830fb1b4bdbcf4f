"""Original checkpoints in 4 and 8 bit are quantized during conversion, counted correctly and merged in full precision."""

from __future__ import annotations

import peft
import pytest
import torch
from peft import LoraConfig

from llmmod.config.schema.model import QuantizationConf
from llmmod.models.adapters.merge import divergence, merged_copy
from llmmod.models.loading.quantization import dequantized_weight, quantization_config
from llmmod.models.loading.structure import count_parameters, rebuild_model

LAYERS = ("Linear4bit", "Linear8bitLt")
# KL divergence in nats per token. The merged weights equal those that 4 bit computes with. 8 bit also rounds activations to 1/127 of a
# row's largest; the merged model doesn't.
APART = {4: 1e-9, 8: 2e-2}


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_while_it_is_converted(name, load, reference, bits):
    ids, plain = reference(name)["input_ids"], load(name)
    conf = quantization_config(QuantizationConf(bits=bits))
    model = load(name, quantization_config=conf)
    linear = [n for n, module in plain.named_modules() if isinstance(module, torch.nn.Linear) and n != "lm_head"]
    assert [n for n, module in model.named_modules() if type(module).__name__ in LAYERS] == linear
    assert count_parameters(model).total == count_parameters(plain).total
    assert torch.equal(logits(model, ids), logits(rebuild_model(plain, quantization_config=conf), ids)), "as if converted first"


@pytest.mark.parametrize("bits", [4, 8])
def test_merged_into_full_precision(name, load, reference, bits):
    ids = reference(name)["input_ids"][0].tolist()
    model = load(name, quantization_config=quantization_config(QuantizationConf(bits=bits)))
    before = {n: dequantized_weight(module) for n, module in model.named_modules() if type(module).__name__ in LAYERS}
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    whole = merged_copy(adapted)
    for layer, weight in before.items():
        delta = adapted.get_base_model().get_submodule(layer).get_delta_weight("default")
        torch.testing.assert_close(whole.get_submodule(layer).weight, weight + delta, rtol=0, atol=1e-6)
    assert abs(divergence(adapted, whole, ids)) < APART[bits]
    with adapted.disable_adapter():
        assert divergence(adapted, whole, ids) > 0.1, "the adapter does something"

"""Adapters on quantized weights are trained in float32, like others: trainers don't round them."""

from __future__ import annotations

import pytest
import torch

from llmmod.config.schema.model import LoraConf, QuantizationConf
from llmmod.models.adapters.setup import setup_lora
from llmmod.models.loading.quantization import quantization_config
from llmmod.models.loading.structure import rebuild_model


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("stage", ["toy", "dpo", "kto"])
def test_adapters_keep_their_type_and_bits(request, tiny_llama, stage, bits):
    quantized = rebuild_model(tiny_llama, quantization_config=quantization_config(QuantizationConf(bits=bits)))
    model = setup_lora(quantized, LoraConf(name="qlora", task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["norm"]))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    request.getfixturevalue(f"{stage}_trainer")(model=model)
    after = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in after.values()} == {torch.float32}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_small_updates_are_not_lost(toy_trainer, tiny_llama):
    """Of weights of about 0.1, an update of 2e-5 is below half of bfloat16's step, 2.4e-4."""
    quantized = rebuild_model(tiny_llama, quantization_config=quantization_config(QuantizationConf(bits=4)))
    conf = LoraConf(name="qlora", task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights="gaussian")
    model = setup_lora(quantized, conf)
    first = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name}
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    arguments = {"learning_rate": 2e-5, "lr_scheduler_type": "constant", "warmup_steps": 0}
    toy_trainer(model=model, max_steps=1, eval_strategy="no", eval_on_start=False, **arguments).train()
    moved = torch.cat([(p - first[name]).abs().flatten() for name, p in model.named_parameters() if name in first])
    assert (moved > 1e-5).float().mean() > 0.9

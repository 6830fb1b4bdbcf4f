"""LoRA's variants, set by configuration: trained for one step, saved, and loaded on the original base."""

from __future__ import annotations

import copy

import pytest
import torch

from llmmod.config.compose import compose_config, to_root
from llmmod.config.validate import validated
from llmmod.models.adapters.base_changing_init import as_base, save_for_base
from llmmod.models.adapters.load import load_adapter
from llmmod.models.adapters.merge import merged_copy
from llmmod.models.adapters.setup import setup_lora

VARIANTS = {
    "plain": [],
    "dora": ["use_dora=true"],
    "rslora": ["use_rslora=true"],
    "pissa": ["init_lora_weights=pissa"],
    "pissa, randomised": ["init_lora_weights=pissa_niter_4"],
    "pissa and rslora": ["init_lora_weights=pissa", "use_rslora=true", "lora_alpha=7"],
    "pissa and rank pattern": ["init_lora_weights=pissa", "+rank_pattern={q_proj:2}", "+alpha_pattern={up_proj:5}"],
    "olora": ["init_lora_weights=olora"],
    "loftq": ["init_lora_weights=loftq"],
    "loftq of 8 bits, twice": ["init_lora_weights=loftq", "+loftq_config={loftq_bits:8,loftq_iter:2}"],
    "orthogonal": ["init_lora_weights=orthogonal"],
    "gaussian": ["init_lora_weights=gaussian"],
    "rank pattern": ["+rank_pattern={q_proj:2,down_proj:8}"],
    "one layer": ["layers_to_transform=[1]"],
    "biases": ["bias=lora_only"],
    "norms too": ["modules_to_save=[norm]"],
}


def finetune(*fields):
    keys = [f"+finetune.{field[1:]}" if field.startswith("+") else f"finetune.{field}" for field in fields]
    composed = compose_config(["model=llama2", "finetune=lora", "finetune.r=4", "smoke=true", *keys])
    validated(composed)
    return to_root(composed.config).finetune


def trained_one_step(model, ids):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_trained_saved_and_put_on_the_base_again(name, tiny_llama, tmp_path, ids, logits):
    base = copy.deepcopy(tiny_llama)
    before = logits(base, ids)
    model = trained_one_step(setup_lora(tiny_llama, finetune(*VARIANTS[name])), ids)
    expected = logits(model, ids)
    assert (expected - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    save_for_base(model, tmp_path)
    torch.testing.assert_close(logits(load_adapter(copy.deepcopy(base), str(tmp_path)), ids), expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(logits(merged_copy(model), ids), expected, rtol=1e-4, atol=2e-5)


def test_as_base_restores_the_base_that_an_adapter_changed(tiny_llama, ids, logits):
    """If the adapter is only disabled, the changed weights compute; that is neither the base nor the adapted model."""
    before = logits(tiny_llama, ids)
    model = trained_one_step(setup_lora(tiny_llama, finetune("init_lora_weights=pissa", "modules_to_save=[norm]")), ids)
    after = logits(model, ids)
    with model.disable_adapter():
        assert (logits(model, ids) - before).abs().max() > 1e-2
    with as_base(model):
        torch.testing.assert_close(logits(model, ids), before, rtol=1e-4, atol=2e-5)
    assert torch.equal(logits(model, ids), after)


@pytest.mark.parametrize("save", ["as it fits the base", "as peft has it"])
def test_the_base_is_restored_from_an_adapter_on_disk(tiny_llama, tmp_path, ids, logits, save):
    base = copy.deepcopy(tiny_llama)
    model = trained_one_step(setup_lora(tiny_llama, finetune("init_lora_weights=olora")), ids)
    model.save_pretrained(tmp_path)
    if save == "as it fits the base":
        save_for_base(model, tmp_path)
    expected, before = logits(model, ids), logits(base, ids)
    again = load_adapter(base, str(tmp_path))
    torch.testing.assert_close(logits(again, ids), expected, rtol=1e-4, atol=2e-5)
    with as_base(again):
        torch.testing.assert_close(logits(again, ids), before, rtol=1e-4, atol=2e-5)

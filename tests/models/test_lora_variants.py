"""LoRA's variants, by configuration: one step of training, saved, and put on the untouched base again."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch

from llmmod.errors import ConfigError
from llmmod.models.adapt import add_lora
from llmmod.models.adapters import attached
from llmmod.models.merge import merged
from llmmod.models.mutated import save_for_base
from llmmod.schema.compose import compose_config, to_root, validated

VARIANTS = {
    "plain": [],
    "dora": ["use_dora=true"],
    "rslora": ["use_rslora=true"],
    "pissa": ["init_lora_weights=pissa"],
    "pissa, randomised": ["init_lora_weights=pissa_niter_4"],
    "pissa and rslora": ["init_lora_weights=pissa", "use_rslora=true", "lora_alpha=7"],
    "pissa and rank pattern": ["init_lora_weights=pissa", "+rank_pattern={q_proj:2}", "+alpha_pattern={up_proj:5}"],
    "olora": ["init_lora_weights=olora"],
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
    model = trained_one_step(add_lora(tiny_llama, finetune(*VARIANTS[name])), ids)
    expected = logits(model, ids)
    assert (expected - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    save_for_base(model, tmp_path)
    torch.testing.assert_close(logits(attached(copy.deepcopy(base), str(tmp_path)), ids), expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(logits(merged(model), ids), expected, rtol=1e-4, atol=2e-5)


def test_loftq_needs_scipy(tiny_llama):
    if importlib.util.find_spec("scipy"):
        pytest.skip("scipy is here")
    with pytest.raises(ConfigError, match="scipy"):
        add_lora(tiny_llama, finetune("init_lora_weights=loftq", "+loftq_config={loftq_bits:4}"))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["finetune=qlora", "quantization@model.quantization=int8", "finetune.use_dora=true"], "finetune.use_dora"),
        (["finetune=lora", "finetune.use_dora=true", "finetune.init_lora_weights=pissa"], "finetune.use_dora"),
    ],
    ids=["DoRA on 8 bits", "DoRA and PiSSA"],
)
def test_what_does_not_go_together_is_refused_before_loading(overrides, key):
    with pytest.raises(ConfigError) as error:
        validated(compose_config(["smoke=true", *overrides]))
    assert [problem.key for problem in error.value.problems] == [key]

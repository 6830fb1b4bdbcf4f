"""Norms and head in float32 in a 16-bit model."""

from __future__ import annotations

import pytest
import torch

from llmmod.models.adapters.precision import upcast_head, upcast_norms

NORMS = {"model.norm"} | {f"model.layers.{n}.{place}_layernorm" for n in (0, 1) for place in ("input", "post_attention")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norms_alone(tiny_llama, dtype, ids, logits):
    model = tiny_llama.to(dtype)
    before = logits(model, ids)
    assert set(upcast_norms(model)) == NORMS
    assert {name for name, p in model.named_parameters() if p.dtype is torch.float32} == {f"{name}.weight" for name in NORMS}
    after = logits(model, ids)
    assert after.dtype is dtype
    # A LlamaRMSNorm already computes in float32 and rounds before it multiplies by its weights. Here they are all 1, so nothing changes.
    assert torch.equal(after, before)


def test_a_layernorm_computes_in_float32():
    layer = torch.nn.LayerNorm(16).bfloat16()
    model = torch.nn.Sequential(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, 16))
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.nn.functional.layer_norm(x.float(), (16,), layer.weight.float(), layer.bias.float()).bfloat16()
    upcast_norms(model)
    assert torch.equal(model(x), expected)


def test_float32_stays_as_it_is(tiny_llama):
    assert upcast_norms(tiny_llama) == []
    assert not any(module._forward_hooks for module in tiny_llama.modules())


def hidden_states(model, ids):
    with torch.no_grad():
        return model.model(input_ids=ids).last_hidden_state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_alone(tiny_llama, dtype, ids, logits):
    model = tiny_llama.to(dtype)
    before, hidden = logits(model, ids), hidden_states(model, ids)
    assert upcast_head(model)
    assert {name for name, p in model.named_parameters() if p.dtype is torch.float32} == {"lm_head.weight"}
    assert torch.equal(hidden_states(model, ids), hidden)
    after = logits(model, ids)
    assert after.dtype is torch.float32
    assert torch.equal(after, hidden.float() @ model.lm_head.weight.T)
    assert not torch.equal(after.to(dtype).float(), after), "more than 16 bits can hold"
    assert torch.allclose(after.to(dtype).float(), before.float(), rtol=2 ** (-7 if dtype is torch.bfloat16 else -10), atol=1e-3)


def test_embeddings_that_share_its_weights_give_what_they_gave(tiny_llama, ids, logits):
    tiny_llama.config.tie_word_embeddings = True
    tiny_llama.tie_weights()
    model = tiny_llama.bfloat16()
    hidden = hidden_states(model, ids)
    assert upcast_head(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(hidden_states(model, ids), hidden)
    assert torch.equal(logits(model, ids), hidden.float() @ model.lm_head.weight.T)


def test_a_head_of_float32_stays_as_it_is(tiny_llama):
    assert not upcast_head(tiny_llama)
    assert not any(module._forward_pre_hooks for module in tiny_llama.modules())

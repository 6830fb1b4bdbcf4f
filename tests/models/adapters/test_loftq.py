"""LoftQ's initial values are the best of their rank, and bring a model closer to the original than quantized weights alone."""

from __future__ import annotations

import copy

import pytest
import torch

from llmmod.config.schema.model import LoraConf
from llmmod.errors import ConfigError
from llmmod.models.adapters.base_changing_init import _rounded, has_lost_base, loftq
from llmmod.models.adapters.load import load_adapter
from llmmod.models.adapters.setup import setup_lora

NF4_GAP = 0.1521  # half the widest gap between two levels of NF4 (Dettmers et al. 2023, appendix E)
MOST = {4: NF4_GAP, 8: 0.5 / 127 + 2**-12}  # 8-bit quantization rounds 16-bit numbers


@pytest.fixture
def weight():
    return torch.randn(40, 24, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_are_within_half_a_step(weight, bits):
    """In 4 bits each block of 64 has a scale, in 8 bits each row."""
    scale = weight.abs().amax(1, keepdim=True) if bits == 8 else weight.reshape(-1, 64).abs().amax(1).repeat_interleave(64).reshape(40, 24)
    error = (_rounded(weight, bits) - weight).abs() / scale
    assert 0 < error.max() <= MOST[bits] * 1.01


@pytest.mark.parametrize("bits", [4, 8])
def test_the_factors_are_the_best_of_their_rank(weight, bits):
    """Eckart and Young 1936: the remainder after the best approximation of rank r has the norm of the singular values from r on."""
    quantized, a, b = loftq(weight, bits=bits, rank=5, iterations=1)
    assert torch.equal(quantized, _rounded(weight, bits))
    left = torch.linalg.svdvals(weight - quantized)[5:]
    assert (weight - quantized - b @ a).norm().item() == pytest.approx(left.norm().item(), rel=1e-4)


def test_iterations_are_the_papers(weight):
    """Algorithm 1: Q_t = q(W - A_{t-1} B_{t-1}), and A_t B_t is the best approximation of W - Q_t."""
    first = loftq(weight, bits=4, rank=5, iterations=1)
    second = loftq(weight, bits=4, rank=5, iterations=2)
    torch.testing.assert_close(second[0], _rounded(weight - first[2] @ first[1], 4))
    assert (weight - second[0] - second[2] @ second[1]).norm() < (weight - first[0] - first[2] @ first[1]).norm()


def conf(**fields):
    return LoraConf(name="lora", task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights="loftq", r=8, **fields)


@pytest.mark.parametrize("alpha", [8, 32])
def test_a_model_with_them_is_closer_to_the_original_at_any_scale(tiny_llama, alpha):
    before = {name: module.weight.clone() for name, module in tiny_llama.named_modules() if isinstance(module, torch.nn.Linear)}
    adapted = setup_lora(tiny_llama, conf(lora_alpha=alpha))
    for name in adapted.targeted_module_names:
        layer = adapted.get_base_model().get_submodule(name)
        kept = layer.base_layer.weight
        torch.testing.assert_close(kept, _rounded(before[name], 4))
        left = torch.linalg.svdvals(before[name] - kept)[8:].norm()
        torch.testing.assert_close((before[name] - kept - layer.get_delta_weight("default")).norm(), left, rtol=1e-3, atol=1e-5)


def test_embeddings_are_refused(tiny_llama):
    with pytest.raises(ConfigError, match="LoftQ is for linear layers, and Embedding is not one"):
        setup_lora(tiny_llama, LoraConf(name="lora", target_modules=["embed_tokens"], init_lora_weights="loftq"))


def test_what_the_base_was_is_lost(tiny_llama, tmp_path):
    base = copy.deepcopy(tiny_llama)
    adapted = setup_lora(tiny_llama, conf())
    assert has_lost_base(adapted)
    adapted.save_pretrained(tmp_path)
    assert has_lost_base(load_adapter(base, str(tmp_path)))

"""Phi-1.5's older layout against its arithmetic, written here from modeling_mixformer_sequential.py of microsoft/phi-1_5."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from llmmod.config.schema.model import QuantizationConf
from llmmod.models.adapters.merge import divergence, merged_copy
from llmmod.models.families.convert import original_names, write_original_config
from llmmod.models.loading.quantization import dequantized_weight, quantization_config
from llmmod.models.loading.structure import count_parameters

HIDDEN, HEADS, LAYERS, VOCABULARY, ROTARY = 64, 4, 12, 96, 8  # more than nine layers: the name layers.1 must not match layers.10
CONFIG = {
    "model_type": "mixformer-sequential", "architectures": ["MixFormerSequentialForCausalLM"], "activation_function": "gelu_new",
    "architecture": {"block_cls": "parallel", "mixer": {}, "mlp": {"mlp_cls": "mlp"}}, "embd_layer": "default", "embd_pdrop": 0.0,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "n_embd": HIDDEN, "n_head": HEADS, "n_inner": None, "n_layer": LAYERS,
    "n_positions": 64, "resid_pdrop": 0.0, "rotary_dim": ROTARY, "tie_word_embeddings": False, "torch_dtype": "float32",
    "vocab_size": VOCABULARY,
}  # fmt: skip
IDS = torch.arange(2, 42).reshape(2, 20)


@pytest.fixture
def checkpoint(tmp_path):
    """A random checkpoint, and its weights."""
    torch.manual_seed(3)
    sizes = {"layers.0.wte.weight": (VOCABULARY, HIDDEN)}
    for i in range(1, LAYERS + 1):
        linear = {"mixer.Wqkv": (3 * HIDDEN, HIDDEN), "mixer.out_proj": (HIDDEN, HIDDEN), "mlp.fc1": (4 * HIDDEN, HIDDEN)}
        linear |= {"mlp.fc2": (HIDDEN, 4 * HIDDEN)}
        sizes |= {f"layers.{i}.{name}.weight": size for name, size in linear.items()}
        sizes |= {f"layers.{i}.{name}.bias": size[:1] for name, size in linear.items()}
        sizes |= {f"layers.{i}.ln.{kind}": (HIDDEN,) for kind in ("weight", "bias")}
    last = LAYERS + 1
    sizes |= {f"layers.{last}.ln.weight": (HIDDEN,), f"layers.{last}.ln.bias": (HIDDEN,)}
    sizes |= {f"layers.{last}.linear.weight": (VOCABULARY, HIDDEN), f"layers.{last}.linear.bias": (VOCABULARY,)}
    state = {name: torch.randn(size) * 0.2 for name, size in sizes.items()}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(
        state | {f"layers.{i}.mixer.rotary_emb.inv_freq": torch.ones(4) for i in range(1, last)},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    return tmp_path, state


def rotated(x):
    """The first channels of each head rotated, one half against the other, [batch, seq, heads, channels]."""
    angles = torch.arange(x.shape[1])[:, None] / 10000 ** (torch.arange(0, ROTARY, 2) / ROTARY)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    one, two = x[..., :ROTARY].chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos, x[..., ROTARY:]], dim=-1)


def original(state, ids):
    """The logits, by the original's arithmetic."""

    def linear(x, name):
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, (HIDDEN,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    x, seq = state["layers.0.wte.weight"][ids], ids.shape[1]
    future = torch.full((seq, seq), -math.inf).triu(1)
    for i in range(1, LAYERS + 1):
        h = norm(x, f"layers.{i}.ln")
        q, k, v = linear(h, f"layers.{i}.mixer.Wqkv").view(*ids.shape, 3, HEADS, HIDDEN // HEADS).unbind(2)  # (three heads channels)
        scores = torch.einsum("bihc,bjhc->bhij", rotated(q), rotated(k)) / math.sqrt(HIDDEN // HEADS) + future
        attended = torch.einsum("bhij,bjhc->bihc", scores.softmax(-1), v).reshape(*ids.shape, HIDDEN)
        inner = functional.gelu(linear(h, f"layers.{i}.mlp.fc1"), approximate="tanh")
        x = linear(attended, f"layers.{i}.mixer.out_proj") + linear(inner, f"layers.{i}.mlp.fc2") + x
    return linear(norm(x, f"layers.{LAYERS + 1}.ln"), f"layers.{LAYERS + 1}.linear")


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_logits(checkpoint, load):
    directory, state = checkpoint
    model = load(directory)
    assert type(model).__name__ == "PhiForCausalLM"
    assert torch.allclose(logits(model), original(state, IDS), atol=1e-4, rtol=0)


def test_the_order_of_queries_and_keys_changes_the_logits(checkpoint, load):
    directory, state = checkpoint
    q, k, v = state["layers.1.mixer.Wqkv.weight"].chunk(3)
    assert (original(state | {"layers.1.mixer.Wqkv.weight": torch.cat([k, q, v])}, IDS) - logits(load(directory))).abs().max() > 1e-2


def test_saved_natively_and_back(checkpoint, load, tmp_path):
    directory, state = checkpoint
    model = load(directory)
    model.save_pretrained(tmp_path / "native")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    assert torch.equal(logits(again), logits(model))
    with original_names(model):
        model.save_pretrained(tmp_path / "back")
    write_original_config(model, tmp_path / "back")
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_while_it_is_converted(checkpoint, load, bits):
    plain, conf = load(checkpoint[0]), quantization_config(QuantizationConf(bits=bits))
    model = load(checkpoint[0], quantization_config=conf)
    assert count_parameters(model).total == count_parameters(plain).total
    before, after = plain.model.layers[3].mlp.fc1.weight, dequantized_weight(model.model.layers[3].mlp.fc1)
    # A share of a block's largest weight, here a row's: half the widest gap of NF4's levels, or half of 1/127 (see test_quantization).
    bound = {4: 0.16, 8: 0.006}[bits] * before.abs().amax(1, keepdim=True)
    assert ((before - after).abs() <= bound).all()
    assert abs(divergence(model, merged_copy(model), IDS[0].tolist())) < {4: 1e-9, 8: 2e-2}[bits]

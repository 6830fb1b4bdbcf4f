"""InternLM against its arithmetic, written here from modeling_internlm.py of internlm/internlm-20b and internlm-7b.

The oracle of the 7B ends before its trained length. These tests cover longer texts with dynamic positions, and the 20B without biases.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

HIDDEN, INNER, HEADS, LAYERS, VOCABULARY, TRAINED, SCALE = 64, 96, 4, 2, 96, 24, 2.0
WIDTH = HIDDEN // HEADS
CONFIG = {
    "model_type": "internlm", "architectures": ["InternLMForCausalLM"], "hidden_act": "silu", "hidden_size": HIDDEN,
    "intermediate_size": INNER, "max_position_embeddings": TRAINED, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "torch_dtype": "float32", "vocab_size": VOCABULARY,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
SIZES = {
    "7B": CONFIG | {"bias": True, "rotary": {"base": 10000, "type": "dynamic"}},
    "20B": CONFIG | {"bias": False, "num_key_value_heads": HEADS, "rotary": {"base": 10000, "type": "dynamic", "scaling_factor": SCALE}},
}
LENGTHS = (60, TRAINED + 1, TRAINED, 9)  # the longest first, since it must not affect those after it


@pytest.fixture(params=SIZES)
def checkpoint(request, tmp_path):
    """A random checkpoint's directory, configuration and weights."""
    torch.manual_seed(3)
    config = SIZES[request.param]
    linear = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
    linear |= {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}
    sizes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        sizes |= {f"model.layers.{i}.{name}.weight": size for name, size in linear.items()}
        sizes |= {f"model.layers.{i}.{name}.bias": size[:1] for name, size in linear.items() if config["bias"] and "attn" in name}
        sizes |= {f"model.layers.{i}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    state = {name: torch.randn(size) * 0.2 + ("norm" in name) for name, size in sizes.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path, config, state


def rotated(x, rotary):
    """Each head rotated, one half against the other, [seq, heads, channels]: InternLMDynamicNTKScalingRotaryEmbedding and rotate_half."""
    length, base, scale = x.shape[0], rotary["base"], rotary.get("scaling_factor", 1.0)
    if length > TRAINED:
        base = base * (scale * length / TRAINED - (scale - 1)) ** (WIDTH / (WIDTH - 2))
    angles = torch.arange(length)[:, None] / base ** (torch.arange(0, WIDTH, 2) / WIDTH)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1)


def original(config, state, ids):
    """The logits [seq, vocabulary] of one text."""

    def linear(x, name):
        return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * state[f"{name}.weight"]

    x, future = state["model.embed_tokens.weight"][ids], torch.full((len(ids), len(ids)), -math.inf).triu(1)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        h = norm(x, f"{layer}.input_layernorm")
        q, k, v = (linear(h, f"{layer}.self_attn.{name}_proj").view(len(ids), HEADS, WIDTH) for name in "qkv")
        scores = torch.einsum("ihc,jhc->hij", rotated(q, config["rotary"]), rotated(k, config["rotary"])) / math.sqrt(WIDTH) + future
        x = x + linear(torch.einsum("hij,jhc->ihc", scores.softmax(-1), v).reshape(len(ids), HIDDEN), f"{layer}.self_attn.o_proj")
        h = norm(x, f"{layer}.post_attention_layernorm")
        inner = functional.silu(linear(h, f"{layer}.mlp.gate_proj")) * linear(h, f"{layer}.mlp.up_proj")
        x = x + linear(inner, f"{layer}.mlp.down_proj")
    return linear(norm(x, "model.norm"), "lm_head")


def text(length):
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length))


def test_logits_within_and_beyond_the_trained_length(checkpoint, load):
    directory, config, state = checkpoint
    model = load(directory)
    assert type(model).__name__ == "LlamaForCausalLM"
    for length in LENGTHS:
        ids = text(length)
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        assert torch.allclose(logits, original(config, state, ids), atol=1e-4, rtol=0), length


@pytest.mark.parametrize("changed", [{"type": "origin"}, {"scaling_factor": 8.0}, {"base": 20000}], ids=["type", "factor", "base"])
def test_another_kind_of_positions_changes_the_logits(checkpoint, load, changed):
    directory, config, state = checkpoint
    other = config | {"rotary": config["rotary"] | changed}
    (directory / "config.json").write_text(json.dumps(other))
    ids = text(LENGTHS[0])
    with torch.no_grad():
        assert (load(directory)(ids[None]).logits[0] - original(config, state, ids)).abs().max() > 1e-2


def greedy(config, state, ids, count):
    """Tokens that the original code generates: each from the whole text, with positions for its length."""
    for _ in range(count):
        ids = torch.cat([ids, original(config, state, ids)[-1:].argmax(-1)])
    return ids


def test_answers_beyond_the_trained_length(checkpoint, load, caplog):
    directory, config, state = checkpoint
    model, prompt = load(directory), text(TRAINED - 6)
    written = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(prompt[None], **written, use_cache=False)[0], greedy(config, state, prompt, 16))
    assert "the original code of InternLM" not in caplog.text
    model.generate(prompt[None], **written | {"max_new_tokens": 6})
    assert "the original code of InternLM" not in caplog.text, "within"
    model.generate(prompt[None], **written)
    assert caplog.text.count("the original code of InternLM rotates all earlier keys again") == 1

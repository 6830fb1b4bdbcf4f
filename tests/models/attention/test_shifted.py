"""LongLoRA's attention equals loops over its definition and the paper's Algorithm 1, and is only used in training."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmmod.config.compose import compose_config, to_root
from llmmod.config.schema.model import HubConf, LoraConf, ModelConf
from llmmod.errors import ConfigError
from llmmod.models.adapters.merge import merged_copy
from llmmod.models.adapters.setup import setup_lora
from llmmod.models.attention.shifted import group_tokens, shift_attention, shifted_attention
from llmmod.models.loading.build import build_model
from llmmod.models.packing import why_not_packed


def naive(query, key, value, group, allowed=None):
    """One head, one token at a time: a token sees the earlier ones of its group; the second half of the heads shifts the groups by half."""
    heads, length, channels = query.shape
    output = torch.zeros_like(query)
    for head in range(heads):
        own = head * key.shape[0] // heads  # adjacent query heads share a key head
        shift = group // 2 if head >= heads // 2 else 0
        for i in range(length):
            seen = [j for j in range(i + 1) if (j - shift) // group == (i - shift) // group]
            seen = [j for j in seen if j == i or allowed is None or allowed[i, j]]
            scores = torch.stack([query[head, i] @ key[own, j] / math.sqrt(channels) for j in seen])
            weights = torch.softmax(scores, 0)
            output[head, i] = sum(w * value[own, j] for w, j in zip(weights, seen, strict=True))
    return output


def algorithm_1(query, key, value, group):
    """As in the paper: split the heads, roll the second half by half a group, attend within groups, roll back."""
    heads, length, channels = query.shape
    qkv = torch.stack([query, key, value]).permute(2, 0, 1, 3)  # N, 3, H, D
    qkv = torch.cat((qkv.chunk(2, 2)[0], qkv.chunk(2, 2)[1].roll(-group // 2, 0)), 2).view(length // group, group, 3, heads, channels)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(length, heads, channels)
    out = torch.cat((out.chunk(2, 1)[0], out.chunk(2, 1)[1].roll(group // 2, 0)), 1)
    return out.transpose(0, 1)


def tensors(heads=4, keys=4, length=24, batch=2):
    torch.manual_seed(0)
    return [torch.randn(batch, h, length, 8, dtype=torch.float64, requires_grad=True) for h in (heads, keys, keys)]


@pytest.mark.parametrize("keys", [4, 2, 1], ids=["a key head each", "two share a key head", "all share a key head"])
@pytest.mark.parametrize("length", [24, 23, 5, 1])
@pytest.mark.parametrize("group", [6, 7, 2])
def test_it_is_the_definition_gradients_too(keys, length, group):
    q, k, v = tensors(keys=keys, length=length)
    ours = shifted_attention(q, k, v, None, group_size=float(group))
    theirs = torch.stack([naive(*(t[row] for t in (q, k, v)), min(group, length)) for row in range(2)])
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    weights = torch.randn_like(ours)
    for mine, reference in zip(
        torch.autograd.grad((ours * weights).sum(), (q, k, v)), torch.autograd.grad((theirs * weights).sum(), (q, k, v)), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


def test_it_is_the_papers_algorithm_except_for_the_first_half_group():
    q, k, v = (t[0].detach() for t in tensors())
    ours = shifted_attention(q[None], k[None], v[None], None, group_size=0.25)[0]
    paper = algorithm_1(q, k, v, 6)
    torch.testing.assert_close(ours[:2], paper[:2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours[2:, 3:], paper[2:, 3:], rtol=1e-9, atol=1e-12)
    # In the paper's roll, the first half group sees the last one, that is, later tokens.
    later = [t.clone() for t in (q, k, v)]
    for tensor in later:
        tensor[:, 21:] += 1.0
    assert not torch.equal(algorithm_1(*later, 6)[2:, :3], paper[2:, :3])
    assert torch.equal(shifted_attention(*(t[None] for t in later), None, group_size=0.25)[0, :, :21], ours[:, :21])


@pytest.mark.parametrize(("size", "length", "tokens"), [(0.25, 24, 6), (0.25, 23, 6), (0.25, 2, 1), (8, 24, 8), (8, 5, 5)])
def test_the_size_of_a_group(size, length, tokens):
    assert group_tokens(size, length) == tokens


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("additive", [False, True], ids=["bool", "added to the scores"])
def test_padding_is_not_seen(side, additive):
    q, k, v = tensors()
    real = torch.ones(2, 24, dtype=torch.bool)
    real[1, slice(17, None) if side == "right" else slice(0, 7)] = False
    allowed = torch.ones(24, 24, dtype=torch.bool).tril() & real[:, None, :]
    mask = allowed[:, None]
    if additive:
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)
    ours = shifted_attention(q, k, v, mask, group_size=6.0)
    theirs = torch.stack([naive(q[row], k[row], v[row], 6, allowed[row]) for row in range(2)])
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours[1][:, real[1]], theirs[1][:, real[1]], rtol=1e-9, atol=1e-12)
    gradients = torch.autograd.grad(ours.sum(), (q, k, v))
    assert all(torch.isfinite(g).all() for g in gradients)


FAMILIES = ["llama2", "falcon", "chatglm2", "qwen", "phi1_5", "qwen3", "gemma3", "mistral", "glm4", "phi4_mini", "llama3", "internlm"]


def tiny(option, tokenizer, **fields):
    root = to_root(compose_config([f"model={option}"]).config)
    return build_model(replace(root.model, **fields), hub=root.hub, smoke=True, tokenizer=tokenizer)


@pytest.mark.parametrize("option", FAMILIES)
def test_every_rope_family(option, tiny_tokenizer):
    """In training, a token of the first layer doesn't see the group before; in evaluation, every bit is that of the plain model."""
    torch.manual_seed(0)
    ids = torch.randint(5, 300, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    plain, model = tiny(option, tiny_tokenizer), tiny(option, tiny_tokenizer, shift_attn=True, shift_attn_group_size=4.0)
    for given in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
        with torch.no_grad():
            assert torch.equal(model.eval()(**given).logits, plain.eval()(**given).logits)
            assert not torch.allclose(model.train()(**given).logits[0, -1], plain.train()(**given).logits[0, -1], atol=1e-6)
    # Through two layers with groups of 4 and shifts of 2, a token affects at most the next 8 places.
    changed = ids.clone()
    changed[0, 0] = 301
    with torch.no_grad():
        before, after = model.train()(input_ids=ids).logits[0], model(input_ids=changed).logits[0]
    assert torch.equal(before[10:], after[10:])
    assert not torch.equal(before[0], after[0])
    # A token doesn't see a later one.
    changed = ids.clone()
    changed[0, -1] = 301
    with torch.no_grad():
        torch.testing.assert_close(before[:-1], model(input_ids=changed).logits[0, :-1], rtol=0, atol=1e-6)


def test_groups_as_long_as_the_sequence_are_full_attention(tiny_tokenizer):
    ids = torch.arange(5, 29).reshape(2, 12)
    plain, model = tiny("llama2", tiny_tokenizer), tiny("llama2", tiny_tokenizer, shift_attn=True, shift_attn_group_size=64.0)
    with torch.no_grad():
        ours, theirs = model.train()(input_ids=ids).logits, plain(input_ids=ids).logits
    # The shifted heads still have a boundary in the middle, so only the first half is the same.
    torch.testing.assert_close(ours[:, :6], theirs[:, :6], rtol=1e-5, atol=1e-6)


def test_generation_has_full_attention(tiny_llama, ids):
    expected = tiny_llama.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    shift_attention(tiny_llama, 0.25)
    assert torch.equal(tiny_llama.eval().generate(input_ids=ids, max_new_tokens=6, do_sample=False), expected)


def test_checkpointing_gives_the_same_gradients(tiny_llama, ids):
    shift_attention(tiny_llama, 4.0)
    gradients = []
    for on in (False, True):
        if on:
            tiny_llama.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        tiny_llama.zero_grad()
        tiny_llama.train()(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in tiny_llama.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-7)


def test_longloras_norms_and_embeddings_are_trained_and_exported(tiny_llama, ids, logits, tmp_path):
    """Chen et al. 2023, section 3.3: LoRA alone doesn't reach longer contexts; norms and embeddings must learn too."""
    shift_attention(tiny_llama, 0.25)
    conf = LoraConf(name="lora", r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    conf.modules_to_save = ["embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"]
    model = setup_lora(tiny_llama, conf)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for part in ("embed_tokens.modules_to_save", "layers.0.input_layernorm.modules_to_save", "model.norm.modules_to_save"):
        assert any(part in name for name in trained), part
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    merged_copy(model).save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids), logits(model, ids), rtol=1e-4, atol=1e-5)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not any("attn" in name or "llmmod" in str(value) for name, value in config.items())


def test_rows_of_several_examples_are_not_for_it(tiny_llama):
    assert why_not_packed(tiny_llama) is None
    shift_attention(tiny_llama, 0.25)
    assert "llmmod_shifted_0.25" in why_not_packed(tiny_llama)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 4}, "true, but LongLoRA needs rotary positions, and Bloom"),
        ({"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "alibi": True}, "and Falcon"),
        ({"model_type": "gptj", "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4}, "and GPTJ"),
    ],
    ids=["bloom", "falcon with ALiBi", "a class without rope parameters"],
)
def test_other_models_are_refused(tiny_tokenizer, architecture, message):
    conf = ModelConf(name="x", architecture=architecture, shift_attn=True)
    with pytest.raises(ConfigError, match=rf"model.shift_attn: .*{message}\w+ doesn't have any. Leave it false"):
        build_model(conf, hub=HubConf(), smoke=True, tokenizer=tiny_tokenizer)


def test_another_attention_is_refused(tiny_llama):
    tiny_llama.set_attn_implementation("eager")
    with pytest.raises(ConfigError, match=r"model.shift_attn: true, but attention is 'eager'. Allowed: sdpa."):
        shift_attention(tiny_llama, 0.25)

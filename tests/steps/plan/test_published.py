"""Plans for models of 7B to 70B agree with published figures; the models don't have values."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from llmmod.config.schema.model import QuantizationConf
from llmmod.steps.plan.memory import Tracer, without_values
from llmmod.steps.plan.model import PlannedLinear

LLAMA2 = {"vocab_size": 32000, "tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("layers", "fields", "count"),
    [
        # Touvron et al. 2023 (Llama 2); the counts are those of the weights of meta-llama/Llama-2-{7b,13b,70b}-hf on the hub.
        (32, {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}, 6_738_415_616),
        (40, {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40, "num_key_value_heads": 40}, 13_015_864_320),
        (80, {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}, 68_976_648_192),
    ],
    ids=["7B", "13B", "70B"],
)
def test_the_parameters_of_llama_2(layers, fields, count):
    """Built with two and three layers; the difference is one layer."""
    counts = []
    for depth in (2, 3):
        tracer = Tracer()
        with without_values(tracer):
            model = LlamaForCausalLM(LlamaConfig(**LLAMA2, **fields, num_hidden_layers=depth))
        tracer.tag(list(model.parameters()), "weights")
        counts.append(sum(p.numel() for p in model.parameters()))
    assert counts[0] + (layers - 2) * (counts[1] - counts[0]) == count


def test_adam_of_mixed_precision_takes_16_bytes_a_parameter():
    """Rajbhandari et al. 2020 (ZeRO), 3.1: with float32 and 16-bit weights, 2 + 2 + 12; 7.5B parameters take 120 GB. Here the
    weights exist once, in float32, like the gradients and Adam's states: 4 + 4 + 8.
    """
    tracer = Tracer()
    with without_values(tracer):
        layer = nn.Linear(1000, 1000, bias=False)
        optimizer = torch.optim.AdamW(layer.parameters(), foreach=False)
        layer(torch.empty(1, 1000)).sum().backward()
        optimizer.step()
        held = [layer.weight, layer.weight.grad, *optimizer.state[layer.weight].values()]
        assert sum(t.nbytes for t in held) == pytest.approx(16 * 10**6, rel=1e-4)


def test_four_bits_take_4_127_bits_a_weight():
    """Dettmers et al. 2023 (QLoRA), 3: double quantization reduces the scales from 0.5 to 0.127 bits per weight, so that 65B fit 48 GB."""
    with without_values(Tracer()):
        plain = nn.Linear(8192, 22016, bias=False)
        layer = PlannedLinear(plain, QuantizationConf(bits=4), torch.bfloat16)
        assert 8 * layer.weight.nbytes / plain.weight.numel() == pytest.approx(4.127, abs=1e-3)
        assert layer(torch.empty(3, 8192, dtype=torch.bfloat16)).shape == (3, 22016)
    assert 65.2e9 * 4.127 / 8 < 34e9


def test_the_activations_of_a_plain_transformer():
    """Korthikanti et al. 2022, equation 1: s b h (34 + 5 a s / h) bytes per layer in 16 bits. On a CPU a dropout mask has 2 bytes where
    the equation has 1, so the plan is higher, by less than a half.
    """
    batch, seq, width, heads, held = 2, 128, 256, 8, []
    for depth in (1, 2):
        plain = {"attn_implementation": "eager", "activation_function": "gelu"}
        config = GPT2Config(n_layer=depth, n_embd=width, n_head=heads, vocab_size=64, **plain)
        tracer = Tracer()
        with without_values(tracer):
            model = GPT2LMHeadModel(config).to(torch.bfloat16).train()
            tracer.tag([*model.parameters(), *model.buffers()], "weights")
            out = model(input_ids=torch.zeros(batch, seq, dtype=torch.int64), use_cache=False)
            held.append(tracer.held("activations"))
            del out
    published = seq * batch * width * (34 + 5 * heads * seq / width)
    assert published <= held[1] - held[0] <= 1.5 * published

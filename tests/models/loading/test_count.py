"""Numbers of parameters, by hand."""

from __future__ import annotations

from llmmod.config.schema.model import QuantizationConf
from llmmod.models.loading.quantization import quantization_config
from llmmod.models.loading.structure import count_parameters, rebuild_model

# tests/conftest.py: vocabulary V, 32 channels, 64 in the MLP, 4 heads of 8 channels, 2 key and value heads, 2 layers.
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32
LORA_LAYER = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))  # r = 4 on the seven projections


def total(vocabulary):
    return 2 * vocabulary * 32 + 2 * LAYER + 32


def test_all_and_trained(tiny_llama):
    tiny_llama.requires_grad_(False).lm_head.requires_grad_(True)
    count = count_parameters(tiny_llama)
    assert count.total == total(tiny_llama.config.vocab_size)
    assert count.trained == tiny_llama.config.vocab_size * 32


def test_an_adapter(tiny_lora):
    count = count_parameters(tiny_lora)
    assert count.trained == 2 * LORA_LAYER
    assert count.total == total(tiny_lora.config.vocab_size) + 2 * LORA_LAYER


def test_four_bits_a_weight_are_still_a_weight(tiny_llama):
    quantized = rebuild_model(tiny_llama, quantization_config=quantization_config(QuantizationConf(bits=4)))
    assert count_parameters(quantized).total == total(tiny_llama.config.vocab_size)


def test_a_shared_matrix_counts_once(tiny_llama):
    tiny_llama.lm_head.weight = tiny_llama.model.embed_tokens.weight
    assert count_parameters(tiny_llama).total == total(tiny_llama.config.vocab_size) - tiny_llama.config.vocab_size * 32


def test_in_words(tiny_llama):
    tiny_llama.requires_grad_(False)
    assert str(count_parameters(tiny_llama)) == f"0 of {total(tiny_llama.config.vocab_size):,} parameters are trained (0.00 %)"

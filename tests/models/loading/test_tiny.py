"""llmmod.models.loading.tiny: small configurations of the same architecture."""

from __future__ import annotations

import pytest

from llmmod.models.families.native import config_class
from llmmod.models.loading.tiny import WIDTH, random_model, shrink_config


def small(model_type, **fields):
    return shrink_config(config_class(model_type)(**fields), vocab_size=300)


def test_widths_keep_their_relation_to_hidden_size():
    """Qwen3-0.6B: 16 heads of 128 channels, twice the width of 1,024; Llama-2-7B: 64 * 11008 / 4096 = 172, rounded to a multiple of 8."""
    qwen3 = small("qwen3", hidden_size=1024, num_attention_heads=16, num_key_value_heads=8, head_dim=128, num_hidden_layers=28)
    assert (qwen3.hidden_size, qwen3.num_attention_heads * qwen3.head_dim, qwen3.num_key_value_heads) == (WIDTH, 2 * WIDTH, 2)
    llama = small("llama", hidden_size=4096, intermediate_size=11008)
    assert (llama.intermediate_size, llama.num_key_value_heads, llama.num_attention_heads) == (176, 4, 4)


def test_each_kind_of_layer_stays():
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 6
    found = small("qwen3_next", num_hidden_layers=24, layer_types=kinds)
    assert (found.num_hidden_layers, found.layer_types) == (2, ["linear_attention", "full_attention"])
    assert small("gpt_neo").attention_layers == ["global", "local"]
    without_experts = small("qwen2_moe", num_hidden_layers=24, mlp_only_layers=[0])
    assert (without_experts.num_hidden_layers, without_experts.mlp_only_layers) == (2, [0])


def test_special_tokens_beyond_the_vocabulary_are_left_out_unless_others_are_given():
    config = config_class("llama")(bos_token_id=1, eos_token_id=128001, pad_token_id=None)
    found = shrink_config(config, vocab_size=300)
    assert (found.vocab_size, found.bos_token_id, found.eos_token_id) == (300, 1, None)
    assert shrink_config(config, vocab_size=300, special={"eos_token_id": 7}).eos_token_id == 7
    assert (config.vocab_size, config.eos_token_id) == (32000, 128001)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "falcon_h1", "gemma4", "mixtral", "mpt", "opt"])
def test_a_model_of_it_is_small_and_computes(model_type, ids):
    model = random_model(small(model_type), seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    assert model(input_ids=ids).logits.shape == (*ids.shape, 300)

"""ChatGLM2 as Glm: the same layers, rotary positions interleaved over half of each head in both."""

from __future__ import annotations

from typing import Any

from llmmod.models.families.family import Family, Raw

# ChatGLM 1 has none of the first; ChatGLM3 and GLM-4 have the same layout, but tokenizers and prompts of their own.
_NEEDS = ("multi_query_group_num", "padded_vocab_size", "ffn_hidden_size")
_OTHERS = ("chatglm3", "glm-4", "glm4", "chatglm-6b", "codegeex")
_GLM4_VOCABULARY = 151552


def _fits(raw: Raw) -> bool:
    name = str(raw.get("_name_or_path", "")).lower()
    if not all(key in raw for key in _NEEDS) or any(other in name for other in _OTHERS):
        return False
    return bool(raw["padded_vocab_size"] != _GLM4_VOCABULARY)


def _rope(raw: Raw) -> dict[str, Any]:
    theta = 10000.0 * (raw.get("rope_ratio") or 1)
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5}}


CHATGLM2 = Family(
    name="ChatGLM2",
    model_type="chatglm",
    native="glm",
    fits=_fits,
    required={
        "vocab_size": ("padded_vocab_size",),
        "hidden_size": ("hidden_size",),
        "intermediate_size": ("ffn_hidden_size",),
        "num_hidden_layers": ("num_layers",),
        "num_attention_heads": ("num_attention_heads",),
        "num_key_value_heads": ("multi_query_group_num",),
        "head_dim": ("kv_channels",),
        "rms_norm_eps": ("layernorm_epsilon",),
        "max_position_embeddings": ("seq_length",),
        "attention_bias": ("add_qkv_bias",),
    },
    optional={"attention_dropout": ("attention_dropout",)},
    values={"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False},  # the class's own are GLM-4's
    computed=_rope,
    only={
        "rmsnorm": (True,),
        "post_layer_norm": (True,),
        "multi_query_attention": (True,),
        "original_rope": (True,),
        "add_bias_linear": (False,),
        "apply_residual_connection_post_layernorm": (False,),
        "fp32_residual_connection": (False,),
        "hidden_dropout": (0.0,),
        "pre_seq_len": (None, 0),  # P-Tuning v2's prefix encoder
        "quantization_bit": (None, 0),  # weights packed by the original code
    },
    layers="transformer.encoder.layers",
    in_layer={
        "self_attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attention.dense": ("self_attn.o_proj",),
        "mlp.dense_h_to_4h": ("mlp.gate_up_proj",),  # the gate is the first half in both
        "mlp.dense_4h_to_h": ("mlp.down_proj",),
        "input_layernorm": ("input_layernorm",),
        "post_attention_layernorm": ("post_attention_layernorm",),
    },
    outside={
        "transformer.embedding.word_embeddings": "model.embed_tokens",
        "transformer.encoder.final_layernorm": "model.norm",
        "transformer.output_layer": "lm_head",
    },
)

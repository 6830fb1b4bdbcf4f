"""Qwen, the first generation, as Qwen2.

Left out: `use_dynamic_ntk` and `use_logn_attn`, which act in evaluation alone and beyond `seq_length` alone; `limits` says so where a text
is that long. They are off in training in the original code too.
"""

from __future__ import annotations

from typing import Any

from llmmod.models.families.family import Family, Raw


def _computed(raw: Raw) -> dict[str, Any]:
    heads = raw.get("num_attention_heads", raw.get("n_head"))
    width = raw.get("intermediate_size", raw.get("ffn_hidden_size"))
    rope = {"rope_type": "default", "rope_theta": float(raw.get("rotary_emb_base", 10000))}
    return {"num_key_value_heads": heads, "intermediate_size": (width or 0) // 2, "rope_parameters": rope, "use_sliding_window": False}


def _fits(raw: Raw) -> bool:
    """Heads as wide as hidden_size divided by their number, which the native class takes for granted."""
    heads, hidden = raw.get("num_attention_heads", raw.get("n_head")), raw.get("hidden_size", raw.get("n_embd"))
    width = raw.get("kv_channels")
    return not (heads and hidden and width) or width * heads == hidden


QWEN = Family(
    name="Qwen, the first generation",
    model_type="qwen",
    native="qwen2",
    fits=_fits,
    required={  # the second names are those of August 2023
        "vocab_size": ("vocab_size", "padded_vocab_size"),
        "hidden_size": ("hidden_size", "n_embd"),
        "intermediate_size": ("intermediate_size", "ffn_hidden_size"),
        "num_hidden_layers": ("num_hidden_layers", "n_layer"),
        "num_attention_heads": ("num_attention_heads", "n_head"),
        "rms_norm_eps": ("layer_norm_epsilon",),
        "max_position_embeddings": ("seq_length",),
    },
    optional={"attention_dropout": ("attn_dropout_prob", "attn_pdrop")},
    computed=_computed,
    only={
        "no_bias": (True,),
        "rotary_pct": (1.0,),
        "scale_attn_weights": (True,),
        "emb_dropout_prob": (0.0,),
        "embd_pdrop": (0.0,),
        "resid_pdrop": (0.0,),
    },
    layers="transformer.h",
    in_layer={
        "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.c_proj": ("self_attn.o_proj",),
        "mlp.w1": ("mlp.up_proj",),  # w1(x) * silu(w2(x)): the gate is the second
        "mlp.w2": ("mlp.gate_proj",),
        "mlp.c_proj": ("mlp.down_proj",),
        "ln_1": ("input_layernorm",),
        "ln_2": ("post_attention_layernorm",),
    },
    outside={"transformer.wte": "model.embed_tokens", "transformer.ln_f": "model.norm", "lm_head": "lm_head"},
)

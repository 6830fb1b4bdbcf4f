"""Phi-1.5 before November 2023, model_type `mixformer-sequential`, as Phi.

One list holds everything there: `layers.0` the embeddings, from 1 on the layers, after the last of them norm and head.
"""

from __future__ import annotations

from typing import Any

from llmmod.models.families.family import Family, Raw


def _computed(raw: Raw) -> dict[str, Any]:
    hidden = raw.get("n_embd", 0)
    rotary = raw.get("rotary_dim", 32) / (hidden // raw["n_head"]) if raw.get("n_head") else 0.5
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": rotary}
    return {"intermediate_size": raw.get("n_inner") or 4 * hidden, "rope_parameters": rope}


def _fits(raw: Raw) -> bool:
    architecture = raw.get("architecture") or {}
    parallel = architecture.get("block_cls", "parallel") == "parallel"
    return parallel and not architecture.get("mixer") and (architecture.get("mlp") or {}).get("mlp_cls", "mlp") == "mlp"


MIXFORMER = Family(
    name="Phi-1.5, before November 2023",
    model_type="mixformer-sequential",
    native="phi",
    fits=_fits,
    required={
        "vocab_size": ("vocab_size",),
        "hidden_size": ("n_embd",),
        "num_hidden_layers": ("n_layer",),
        "num_attention_heads": ("n_head",),
        "max_position_embeddings": ("n_positions",),
        "layer_norm_eps": ("layer_norm_epsilon",),
    },
    optional={"hidden_act": ("activation_function",), "resid_pdrop": ("resid_pdrop",), "embd_pdrop": ("embd_pdrop",)},
    values={"bos_token_id": None, "eos_token_id": None},
    computed=_computed,
    layers="layers",
    first_layer=1,
    in_layer={
        "ln": ("input_layernorm",),
        "mixer.Wqkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),  # whole thirds, heads not interleaved
        "mixer.out_proj": ("self_attn.dense",),
        "mlp.fc1": ("mlp.fc1",),
        "mlp.fc2": ("mlp.fc2",),
    },
    outside={"layers.0.wte": "model.embed_tokens"},
    after_layers={"ln": "model.final_layernorm", "linear": "lm_head"},
)

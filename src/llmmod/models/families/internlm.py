"""InternLM, the first generation, as Llama: the same names, with biases in all four attention projections where config.json says so."""

from __future__ import annotations

from typing import Any

from llmmod.models.families.family import Family, Raw
from llmmod.models.families.llama_names import IN_LAYER, OUTSIDE, REQUIRED


def _rope(raw: Raw) -> dict[str, Any]:
    rotary = raw.get("rotary") or {}
    rope = {"rope_type": "default", "rope_theta": float(rotary.get("base", 10000))}
    if rotary.get("type") == "dynamic":
        rope |= {"rope_type": "dynamic", "factor": float(rotary.get("scaling_factor", 1.0))}
    return {"rope_parameters": rope}


def _fits(raw: Raw) -> bool:
    rotary = raw.get("rotary")
    return rotary is None or (isinstance(rotary, dict) and rotary.get("type", "origin") in ("origin", "dynamic"))


INTERNLM = Family(
    name="InternLM",
    model_type="internlm",
    native="llama",
    fits=_fits,
    required=REQUIRED | {"attention_bias": ("bias",), "max_position_embeddings": ("max_position_embeddings",)},
    optional={"num_key_value_heads": ("num_key_value_heads",)},
    computed=_rope,
    in_layer=IN_LAYER | {f"self_attn.{name}": (f"self_attn.{name}",) for name in ("q_proj", "k_proj", "v_proj")},
    outside=OUTSIDE,
)

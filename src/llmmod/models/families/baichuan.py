"""Baichuan and Baichuan2: four architectures under one model_type, told apart by config.json.

The 7B models are Llama with one matrix for queries, keys and values, `W_pack`. The 13B models attend by ALiBi instead of rotary positions,
and have a class here (`alibi`). Baichuan2 normalises the rows of its head each time it is used: it is normalised once, on loading.
"""

from __future__ import annotations

from typing import Any

from llmmod.models.families.family import Family, Raw
from llmmod.models.families.llama_names import IN_LAYER, OUTSIDE, REQUIRED

HEAD_IS_FINAL = "head_is_final"  # in config.json: the head's rows are used as they are, since they were trained so
_VOCABULARIES = {64000: 1, 125696: 2}


def _generation(raw: Raw) -> int:
    """1 or 2: by the vocabulary, or, where somebody changed that, by a field that only Baichuan2's configurations have."""
    return _VOCABULARIES.get(raw.get("vocab_size", 0), 2 if "z_loss_weight" in raw else 1)


def _is_7b(raw: Raw) -> bool:
    return "max_position_embeddings" in raw and (raw.get("hidden_size"), raw.get("num_attention_heads")) != (5120, 40)


def _is_13b(raw: Raw) -> bool:
    return "model_max_length" in raw and "max_position_embeddings" not in raw


def _rope(raw: Raw) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "attention_bias": False}


def _own_fields(raw: Raw) -> dict[str, Any]:
    return {name: raw[name] for name in ("z_loss_weight", HEAD_IS_FINAL) if name in raw}


def _family(name: str, generation: int, *, rope: bool, native: str) -> Family:
    of_size, length = (_is_7b, "max_position_embeddings") if rope else (_is_13b, "model_max_length")
    return Family(
        name=name,
        model_type="baichuan",
        native=native,
        fits=lambda raw: of_size(raw) and _generation(raw) == generation,
        required=REQUIRED | {length: (length,)},
        computed=_rope if rope else _own_fields,
        only={"z_loss_weight": (0, None)},  # its weight is 0 in all that were released
        in_layer=IN_LAYER | {"self_attn.W_pack": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
        outside=OUTSIDE,
        unit_rows=("lm_head",) if generation == 2 else (),
    )


BAICHUAN_7B = _family("Baichuan-7B", 1, rope=True, native="llama")
BAICHUAN2_7B = _family("Baichuan2-7B", 2, rope=True, native="llama")
BAICHUAN_13B = _family("Baichuan-13B", 1, rope=False, native="baichuan")
BAICHUAN2_13B = _family("Baichuan2-13B", 2, rope=False, native="baichuan")

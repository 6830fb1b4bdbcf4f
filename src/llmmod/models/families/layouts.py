"""The layouts of 2023 that can be converted, and which of them a checkpoint has: Baichuan (1 and 2), InternLM, Qwen, ChatGLM2, Phi-1.5.

Baichuan has four architectures with one model_type, which config.json distinguishes. The 7B models are Llama with one matrix for queries,
keys and values, `W_pack`; the 13B models have ALiBi instead of rotary positions, and a class of ours (`baichuan`). Baichuan2 normalises the
rows of its head at each use: here that is done once, on loading.

InternLM, the first generation, is Llama with biases in all four attention projections if config.json says so. Qwen, the first generation,
is Qwen2. `use_dynamic_ntk` and `use_logn_attn` are left out, which only act in evaluation and beyond `seq_length`; `native` warns of such
long texts. ChatGLM2 is Glm: the same layers, with rotary positions interleaved over half of each head in both.

Phi-1.5 before November 2023, model_type `mixformer-sequential`, is Phi. One list has all of its parts: `layers.0` is the embeddings, then
follow the layers from 1 on, and then norm and head.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY, find_checkpoint
from llmmod.models.families.family import Family, Raw

# Names that layouts derived from Llama share with it.
_REQUIRED = {
    name: (name,)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "hidden_act")
}
_SAME = "self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj input_layernorm post_attention_layernorm"
_IN_LAYER: dict[str, tuple[str, ...]] = {name: (name,) for name in _SAME.split()}
_OUTSIDE = {name: name for name in ("model.embed_tokens", "model.norm", "lm_head")}

HEAD_IS_FINAL = "head_is_final"  # in Baichuan2's config.json: the head was trained without normalisation, so its rows are used unchanged
_BAICHUAN_VOCABULARIES = {64000: 1, 125696: 2}

# ChatGLM 1 doesn't have these fields; ChatGLM3 and GLM-4 have the same layout, but other tokenizers and prompts.
_CHATGLM2_FIELDS = ("multi_query_group_num", "padded_vocab_size", "ffn_hidden_size")
_NOT_CHATGLM2 = ("chatglm3", "glm-4", "glm4", "chatglm-6b", "codegeex")
_GLM4_VOCABULARY = 151552


def _baichuan(name: str, generation: int, *, rope: bool, native: str) -> Family:
    is_size, length = (_is_baichuan_7b, "max_position_embeddings") if rope else (_is_baichuan_13b, "model_max_length")
    return Family(
        name=name,
        model_type="baichuan",
        native=native,
        fits=lambda raw: is_size(raw) and _baichuan_generation(raw) == generation,
        required=_REQUIRED | {length: (length,)},
        computed=_baichuan_7b_fields if rope else _baichuan_13b_fields,
        only={"z_loss_weight": (0, None)},  # its weight is 0 in all released models
        in_layer=_IN_LAYER | {"self_attn.W_pack": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
        outside=_OUTSIDE,
        unit_rows=("lm_head",) if generation == 2 else (),
    )


def _baichuan_generation(raw: Raw) -> int:
    """1 or 2: by the vocabulary, or if that was changed, by a field that only Baichuan2's configurations have."""
    return _BAICHUAN_VOCABULARIES.get(raw.get("vocab_size", 0), 2 if "z_loss_weight" in raw else 1)


def _is_baichuan_7b(raw: Raw) -> bool:
    return "max_position_embeddings" in raw and (raw.get("hidden_size"), raw.get("num_attention_heads")) != (5120, 40)


def _is_baichuan_13b(raw: Raw) -> bool:
    return "model_max_length" in raw and "max_position_embeddings" not in raw


def _baichuan_7b_fields(raw: Raw) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "attention_bias": False}


def _baichuan_13b_fields(raw: Raw) -> dict[str, Any]:
    return {name: raw[name] for name in ("z_loss_weight", HEAD_IS_FINAL) if name in raw}


BAICHUAN_7B = _baichuan("Baichuan-7B", 1, rope=True, native="llama")
BAICHUAN2_7B = _baichuan("Baichuan2-7B", 2, rope=True, native="llama")
BAICHUAN_13B = _baichuan("Baichuan-13B", 1, rope=False, native="baichuan")
BAICHUAN2_13B = _baichuan("Baichuan2-13B", 2, rope=False, native="baichuan")


def _internlm_rope(raw: Raw) -> dict[str, Any]:
    rotary = raw.get("rotary") or {}
    rope = {"rope_type": "default", "rope_theta": float(rotary.get("base", 10000))}
    if rotary.get("type") == "dynamic":
        rope |= {"rope_type": "dynamic", "factor": float(rotary.get("scaling_factor", 1.0))}
    return {"rope_parameters": rope}


def _is_internlm(raw: Raw) -> bool:
    rotary = raw.get("rotary")
    return rotary is None or (isinstance(rotary, dict) and rotary.get("type", "origin") in ("origin", "dynamic"))


INTERNLM = Family(
    name="InternLM",
    model_type="internlm",
    native="llama",
    fits=_is_internlm,
    required=_REQUIRED | {"attention_bias": ("bias",), "max_position_embeddings": ("max_position_embeddings",)},
    optional={"num_key_value_heads": ("num_key_value_heads",)},
    computed=_internlm_rope,
    in_layer=_IN_LAYER | {f"self_attn.{name}": (f"self_attn.{name}",) for name in ("q_proj", "k_proj", "v_proj")},
    outside=_OUTSIDE,
)


def _qwen_fields(raw: Raw) -> dict[str, Any]:
    heads = raw.get("num_attention_heads", raw.get("n_head"))
    width = raw.get("intermediate_size", raw.get("ffn_hidden_size"))
    rope = {"rope_type": "default", "rope_theta": float(raw.get("rotary_emb_base", 10000))}
    return {"num_key_value_heads": heads, "intermediate_size": (width or 0) // 2, "rope_parameters": rope, "use_sliding_window": False}


def _is_qwen(raw: Raw) -> bool:
    """Whether heads have hidden_size divided by their number as width, as the native class requires."""
    heads, hidden = raw.get("num_attention_heads", raw.get("n_head")), raw.get("hidden_size", raw.get("n_embd"))
    width = raw.get("kv_channels")
    return not (heads and hidden and width) or width * heads == hidden


QWEN = Family(
    name="Qwen, the first generation",
    model_type="qwen",
    native="qwen2",
    fits=_is_qwen,
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
    computed=_qwen_fields,
    only={
        "no_bias": (True,),
        "rotary_pct": (1.0,),
        "scale_attn_weights": (True,),
        **dict.fromkeys(("emb_dropout_prob", "embd_pdrop", "resid_pdrop"), (0.0,)),
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


def _is_chatglm2(raw: Raw) -> bool:
    name = str(raw.get("_name_or_path", "")).lower()
    known = all(key in raw for key in _CHATGLM2_FIELDS) and not any(other in name for other in _NOT_CHATGLM2)
    return known and bool(raw["padded_vocab_size"] != _GLM4_VOCABULARY)


def _chatglm2_rope(raw: Raw) -> dict[str, Any]:
    theta = 10000.0 * (raw.get("rope_ratio") or 1)
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5}}


CHATGLM2 = Family(
    name="ChatGLM2",
    model_type="chatglm",
    native="glm",
    fits=_is_chatglm2,
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
    values={"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False},  # the class's defaults are GLM-4's
    computed=_chatglm2_rope,
    only={
        **dict.fromkeys(("rmsnorm", "post_layer_norm", "multi_query_attention", "original_rope"), (True,)),
        **dict.fromkeys(("add_bias_linear", "apply_residual_connection_post_layernorm", "fp32_residual_connection"), (False,)),
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


def _mixformer_fields(raw: Raw) -> dict[str, Any]:
    hidden = raw.get("n_embd", 0)
    rotary = raw.get("rotary_dim", 32) / (hidden // raw["n_head"]) if raw.get("n_head") else 0.5
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": rotary}
    return {"intermediate_size": raw.get("n_inner") or 4 * hidden, "rope_parameters": rope}


def _is_mixformer(raw: Raw) -> bool:
    architecture = raw.get("architecture") or {}
    parallel = architecture.get("block_cls", "parallel") == "parallel"
    return parallel and not architecture.get("mixer") and (architecture.get("mlp") or {}).get("mlp_cls", "mlp") == "mlp"


MIXFORMER = Family(
    name="Phi-1.5, before November 2023",
    model_type="mixformer-sequential",
    native="phi",
    fits=_is_mixformer,
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
    computed=_mixformer_fields,
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


FAMILIES = (CHATGLM2, QWEN, INTERNLM, BAICHUAN_7B, BAICHUAN2_7B, BAICHUAN_13B, BAICHUAN2_13B, MIXFORMER)


def family_of(raw: Raw, *, path: str) -> Family | None:
    """The layout of 2023 of a checkpoint, or None.

    Args:
        raw: its config.json.
        path: for messages.

    Raises:
        ConfigError: it has the model_type of known families, but isn't one of them.
    """
    candidates = [family for family in FAMILIES if family.model_type == raw.get("model_type")]
    if not candidates:
        return None
    fitting = [family for family in candidates if family.fits(raw)]
    if len(fitting) != 1:
        names = ", ".join(family.name for family in candidates)
        found = f"'{path}' has model_type {raw['model_type']}, but its config.json is not one of {names}"
        raise ConfigError(Problem(PATH_KEY, found, do="Use a checkpoint of one of them"))
    return fitting[0]


def families_of_class(native: str) -> tuple[Family, ...]:
    """The families of a native class, by its model_type."""
    return tuple(family for family in FAMILIES if family.native == native)


def family_on_disk(path: str, gguf_file: str | None = None) -> str | None:
    """The model_type of the class for a local checkpoint; None if its config.json doesn't have it, or isn't on this disk."""
    try:
        checkpoint = find_checkpoint(path, gguf_file=gguf_file)
        if not checkpoint.local or checkpoint.gguf_file is not None:
            return None
        raw = json.loads((Path(checkpoint.path) / "config.json").read_text(encoding="utf-8"))
        family = family_of(raw, path=path)
    except (ConfigError, OSError, ValueError, AttributeError):
        return None  # another check reports it
    return family.native if family is not None else raw.get("model_type")

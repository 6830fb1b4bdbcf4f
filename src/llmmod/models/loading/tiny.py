"""The tiny models of `smoke=true`: random weights, the real architecture in small sizes, and the project's own tokenizer.

The features of an architecture stay: the order of kinds of layers, grouped queries, experts, positions, activation. Widths keep their
relation to `hidden_size`, so that sizes that are computed from others still fit. `shrink_config` does that for any architecture; a test run
with it takes a second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerFast

from llmmod.errors import ConfigError, Problem, did_you_mean, one_line
from llmmod.models.attention.rope import use_per_sequence_rope
from llmmod.models.families.native import config_class, initial_model

STAND_IN = "is_stand_in"  # attribute of a tiny model, whose few layers stand for the many of the real one
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
TINY_TOKENIZER = Path(__file__).parent / "tiny_tokenizer"

WIDTH = 64  # channels of a layer's input
_HEADS = 4
_KINDS = 4  # maximum number of layers; one of each kind stands for all of its kind

_HIDDEN = ("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_dim", "model_dim", "dim")
_DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers", "encoder_layers", "num_decoder_layers",
    "num_encoder_layers", "depth",
)  # fmt: skip
# (number of heads, channels of each)
_HEAD_SIZES = (
    (("num_attention_heads", "n_head", "num_heads", "n_heads"), ("head_dim", "attention_head_dim", "kv_channels", "d_head", "dim_head")),
    (("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), ("mamba_d_head", "mamba_head_dim", "mamba_headdim")),
    (("swa_num_attention_heads",), ("swa_head_dim",)),
)
_OTHER_HEADS = (
    "decoder_attention_heads", "encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads", "attention_heads",
    "linear_num_value_heads", "linear_num_heads", "index_n_heads", "num_query_groups",
)  # fmt: skip
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads")
_IN_PROPORTION = re.compile(
    r"intermediate_size\w*|\w+_intermediate_size|ffn_dim|ffn_hidden_size|\w*_ffn_dim|n_inner|d_inner|dim_ff|dff|expert_ffn_hidden_size"
    r"|attention_hidden_size|lru_width|word_embed_proj_dim|embedding_size|\w+_embedding_size|hidden_size_global"
    r"|time_step_rank|mamba_dt_rank|(q|kv|o)_lora_rank|router_hidden_size|hidden_size_per_layer_input|ple_embed_dim|out_hidden_size"
)
# Fields with a list of the numbers of some layers.
_LAYER_NUMBERS = re.compile(r"attn_layer_indices|full_attn_idxs|hybrid_layer_ids|mlp_only_layers|moe_layers|cross_attention_layers")
_EXACT: Mapping[str, int] = {
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "qk_head_dim": 24, "index_head_dim": 16, "rotary_dim": 8,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_head_dim": 16, "attention_head_size": 16, "adapter_rank": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "zero_expert_num": 2,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 2, "moe_top_k": 2, "top_k_experts": 2,
    "n_group": 2, "topk_group": 1, "num_expert_group": 2, "n_shared_experts": 1,
    "state_size": 8, "ssm_state_size": 8, "mamba_d_state": 8, "n_groups": 1, "mamba_n_groups": 1, "mamba_ngroups": 1,
    "first_k_dense_replace": 1, "max_window_layers": 1, "num_kv_shared_layers": 0, "layer_group_size": 2,
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    "laurel_rank": 8, "ngram_vocab_size_base": 64, "split_ngram_parts": 1,
}  # fmt: skip


def tiny_model(
    architecture: dict[str, Any],
    *,
    tokenizer: Any,
    seed: int,
    dtype: torch.dtype | None = None,
    prepare: Callable[[Any], object] | None = None,
) -> Any:
    """A model of random weights, small enough to train in a second.

    Args:
        architecture: `model_type`, and fields of its configuration.
        tokenizer: for the vocabulary's size and the special tokens.
        seed: of the weights.
        dtype: of the weights; None: float32.
        prepare: called with the configuration before the model is built, to change it.

    Raises:
        ConfigError: `model_type` is missing or unknown to transformers, or its configuration refuses the fields.
    """
    fields = dict(architecture)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        do = "Give it the model_type of its config.json and a few small sizes, as in the files in conf/model"
        raise ConfigError(Problem("model.architecture", "doesn't have a model_type, so smoke=true can't build a tiny model of it", do=do))
    special = {name: getattr(tokenizer, name) for name in _SPECIAL}
    try:
        config = config_class(model_type)(vocab_size=len(tokenizer), **special, **fields)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(_refused(model_type, error)) from error
    if prepare is not None:
        prepare(config)
    model = random_model(config, seed=seed, dtype=dtype)
    setattr(model, STAND_IN, True)
    return model


def shrunk_model(
    config: Any,
    *,
    tokenizer: Any,
    seed: int,
    dtype: torch.dtype | None = None,
    prepare: Callable[[Any], object] | None = None,
) -> Any:
    """A small model with random weights, of the architecture of a configuration; otherwise like `tiny_model`.

    Args:
        config: a PreTrainedConfig with the real sizes.
        tokenizer, seed, dtype, prepare: as in `tiny_model`.

    Raises:
        ConfigError: this class can't be made small in this way.
    """
    special = {name: getattr(tokenizer, name) for name in _SPECIAL}
    try:
        small = shrink_config(config, vocab_size=len(tokenizer), special=special)
        if prepare is not None:
            prepare(small)
        model = random_model(small, seed=seed, dtype=dtype)
    except ConfigError:
        raise
    except Exception as error:  # whatever a class of anybody's raises
        said = f"{type(error).__name__}: {one_line(error)}"
        do = "Give it sizes that fit together: model.architecture={model_type: …, hidden_size: 64, …}"
        raise ConfigError(Problem("model.architecture", f"a tiny model of {config.model_type} can't be built ({said})", do=do)) from error
    setattr(model, STAND_IN, True)
    return model


def random_model(config: Any, *, seed: int, dtype: torch.dtype | None = None) -> Any:
    """A model with an architecture's initial weights, which depend only on the seed; the process's random state doesn't change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = initial_model(config, dtype=dtype or torch.float32).eval()
    use_per_sequence_rope(model)
    return model


def tiny_tokenizer(extra_tokens: Sequence[str] = ()) -> Any:
    """The project's own tokenizer, with a render's special tokens added."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY_TOKENIZER)
    known = tokenizer.get_vocab()
    new = [token for token in dict.fromkeys(extra_tokens) if token not in known]
    if new:
        tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    return tokenizer


def _refused(model_type: str, error: Exception) -> Problem:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        near = did_you_mean(model_type, CONFIG_MAPPING_NAMES)
        return Problem("model.architecture.model_type", f"transformers doesn't have '{model_type}'", near)
    return Problem("model.architecture", f"{model_type} refuses it: {one_line(error)}")


def shrink_config(config: Any, *, vocab_size: int, special: Mapping[str, int | None] | None = None, **fields: Any) -> Any:
    """A configuration of the same class for a model of about ten thousand weights.

    Args:
        config: a PreTrainedConfig; it isn't changed.
        vocab_size: tokens.
        special: `bos_token_id` and similar fields; others beyond the vocabulary are removed.
        fields: further fields to set, if the configuration has them.
    """
    given = _shrunk_fields(config.to_dict(), vocab_size=vocab_size, special=special or {}, fields=fields)
    for name in getattr(config, "sub_configs", None) or {}:
        part = getattr(config, name, None)
        if part is not None:
            given[name] = _shrunk_fields(part.to_dict(), vocab_size=vocab_size, special=special or {}, fields=fields)
    return type(config).from_dict({name: value for name, value in given.items() if name not in ("transformers_version", "_name_or_path")})


def _shrunk_fields(
    given: dict[str, Any], *, vocab_size: int, special: Mapping[str, int | None], fields: Mapping[str, Any]
) -> dict[str, Any]:
    result = dict(given)
    wide = next((given[name] for name in _HIDDEN if _is_size(given.get(name))), WIDTH)
    for name, value in given.items():
        if name in _HIDDEN and _is_size(value):
            result[name] = WIDTH
        elif name in _EXACT and _is_size(value):
            result[name] = min(value, _EXACT[name])
        elif _IN_PROPORTION.fullmatch(name) and _is_size(value):
            result[name] = min(value, max(8, round(value / wide * WIDTH / 8) * 8))
        elif name in _OTHER_HEADS and _is_size(value):
            result[name] = _HEADS
    result |= _heads(given, wide) | _layers(given)
    for name in ("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"):
        if given.get(name) is not None:
            result[name] = vocab_size
    for name in _SPECIAL:
        own = given.get(name)
        if name in special:
            result[name] = special[name]
        elif any(number >= vocab_size for number in (own if isinstance(own, list) else [own]) if isinstance(number, int)):
            result[name] = None
    return result | {name: value for name, value in fields.items() if given.get(name) is not None}


def _heads(given: Mapping[str, Any], wide: int) -> dict[str, Any]:
    """Numbers of heads and their channels; the total width of all heads keeps its relation to a layer's input."""
    result: dict[str, Any] = {}
    for numbers, channels in _HEAD_SIZES:
        number = next((given[name] for name in numbers if _is_size(given.get(name))), None)
        result |= {name: _HEADS for name in numbers if _is_size(given.get(name))}
        for name in channels if number is not None else ():
            if _is_size(given.get(name)):
                result[name] = max(8, round(number * given[name] / wide * WIDTH / _HEADS / 8) * 8)
    attention = next((given[name] for name in _HEAD_SIZES[0][0] if _is_size(given.get(name))), None)
    for name in _KEY_HEADS:
        if _is_size(given.get(name)):
            result[name] = 1 if given[name] == 1 else _HEADS if given[name] == attention else 2
    if _is_size(given.get("head_dim")) and given["head_dim"] == given.get("qk_rope_head_dim"):
        result["head_dim"] = _EXACT["qk_rope_head_dim"]
    if _is_size(given.get("mamba_d_ssm")):
        result["mamba_d_ssm"] = result["mamba_n_heads"] * result["mamba_d_head"]
    if _is_size(given.get("query_pre_attn_scalar")):
        result["query_pre_attn_scalar"] = result.get("head_dim", WIDTH // _HEADS)
    return result


def _layers(given: Mapping[str, Any]) -> dict[str, Any]:
    """One layer of each kind, at least two; lists with an entry per layer keep the entries of these layers."""
    depth = next((given[name] for name in _DEPTHS if _is_size(given.get(name))), None)
    if depth is None:
        return {}
    lists = {name: value for name, value in given.items() if isinstance(value, list) and len(value) == depth and depth > 1}
    numbers = {name: value for name, value in given.items() if _LAYER_NUMBERS.fullmatch(name) and isinstance(value, list)}
    per_layer = {int(number): fields for number, fields in (given.get("per_layer_config") or {}).items()}
    first: dict[str, int] = {}
    for number in range(depth):
        kind = [value[number] for value in lists.values()], [number in value for value in numbers.values()]
        first.setdefault(repr((kind, per_layer.get(number))), number)
    chosen = sorted(first.values())[:_KINDS]
    chosen = sorted(chosen + [number for number in range(depth) if number not in chosen][: max(0, 2 - len(chosen))])
    if isinstance(given.get("block_types"), list):  # RecurrentGemma's, which repeat
        chosen = list(range(len(given["block_types"])))
    result: dict[str, Any] = {name: [value[number] for number in chosen] for name, value in lists.items()}
    result |= {name: [new for new, number in enumerate(chosen) if number in value] for name, value in numbers.items()}
    if per_layer:
        own = {new: per_layer[number] for new, number in enumerate(chosen) if number in per_layer}
        result["per_layer_config"] = {new: _shrunk_layer(given, fields) for new, fields in own.items()}
    result |= {name: min(given[name], len(chosen)) for name in _DEPTHS if _is_size(given.get(name))}
    if isinstance(given.get("attention_types"), list):  # GPT-Neo's: [[kinds, how many times]]
        kinds: Sequence[Any] = given["attention_types"][0][0]
        result |= {"attention_types": [[kinds, 1]], "num_layers": len(kinds), "attention_layers": list(kinds)}
    return result


def _shrunk_layer(given: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Small values for the fields of single layers."""
    small = _heads({**given, **fields}, next((given[name] for name in _HIDDEN if _is_size(given.get(name))), WIDTH))
    return {name: small.get(name, value) for name, value in fields.items()}


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

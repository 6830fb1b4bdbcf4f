"""Baichuan-13B and Baichuan2-13B: Llama's layers, with ALiBi instead of rotary positions (Press et al. 2022).

transformers doesn't have a class for them; Llama's differs only in the positions. A checkpoint with Llama's model_type would load
everywhere and give wrong results. So their configuration keeps its model_type, and saved files have the original names, which stock
programs refuse.

Each head h adds `slope_h * (j - last)` to the score of key j. The original adds `slope_h * j`, which is the same after the softmax; counted
from the last key, the biases of near keys stay exact in bfloat16.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from llmmod.errors import ConfigError, Problem
from llmmod.models.families.convert import family_of_model, has_unit_rows, original_names
from llmmod.upstream import require_upstream

require_upstream(__name__)

ATTENTION = "baichuan_alibi"
_LIKE = (None, "sdpa", "eager", ATTENTION)  # allowed implementations: all become SDPA with the bias in its mask
_NOT_SAVED = (
    "max_position_embeddings", "rope_parameters", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "pretraining_tp",
    "attention_dropout", "original_config",
)  # fmt: skip


class BaichuanConfig(LlamaConfig):
    """The configuration of a 13B model, written like the original's config.json.

    Args:
        model_max_length: tokens that it was trained on; ALiBi itself doesn't have a limit.
    """

    model_type = "baichuan"
    alibi = True  # as in Falcon's configuration: it doesn't have rotary positions to scale
    is_original = True  # it writes the original's config.json

    def __init__(self, model_max_length: int = 4096, **fields: Any) -> None:
        super().__init__(**{**fields, "max_position_embeddings": model_max_length})
        self.model_max_length = model_max_length

    def to_dict(self) -> dict[str, Any]:
        """The contents of config.json, without fields of models with rotary positions."""
        return {name: value for name, value in super().to_dict().items() if name not in _NOT_SAVED}


class NoRotation(nn.Module):
    """Rotary positions of angle 0."""

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, [1, seq, 1], which broadcast over channels."""
        shape = (1, position_ids.shape[-1], 1)
        return hidden.new_ones(shape), hidden.new_zeros(shape)


class _WithAlibi(LlamaPreTrainedModel):  # type: ignore[misc]
    """The common part of the classes of these models."""

    config_class = BaichuanConfig
    config: BaichuanConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """ALiBi's implementation for each of the equivalent ones.

        Raises:
            ConfigError: the requested one can't add a bias.
        """
        if requested_attention not in _LIKE:
            found = f"'{requested_attention}' doesn't support ALiBi, which this model needs"
            raise ConfigError(Problem("model.attn_implementation", found, "Allowed: sdpa, null"))
        register_attention()
        return ATTENTION


class BaichuanForCausalLM(_WithAlibi, LlamaForCausalLM):
    """Llama with ALiBi. It saves original names, and loads both."""

    def __init__(self, config: BaichuanConfig) -> None:
        register_attention()
        super().__init__(config)
        self.model.rotary_emb = NoRotation()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **arguments: Any) -> None:
        """Like the base class's method, with `W_pack` instead of its three matrices."""
        family = family_of_model(self)
        final = family is not None and bool(family.unit_rows) and not has_unit_rows(self.lm_head.weight)
        if final:
            self.config.head_is_final = True  # it was trained without normalisation, so a load must not normalise it
        with original_names(self):
            super().save_pretrained(save_directory, **arguments)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Like the base class's method; a checkpoint of this class, from which a trainer resumes, has the original names."""
        unpacked: dict[str, Any] = {}
        for name, tensor in state_dict.items():
            packed = ".self_attn.W_pack." in name
            parts = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True) if packed else [("W_pack", tensor)]
            unpacked |= {name.replace("W_pack", part): rows for part, rows in parts}
        return super().load_state_dict(unpacked, *args, **kwargs)


class BaichuanForSequenceClassification(_WithAlibi):
    """The same trunk with a linear head; it doesn't have an original layout, so its names are those of Llama's class."""

    def __init__(self, config: BaichuanConfig) -> None:
        register_attention()
        super().__init__(config)
        self.model = LlamaModel(config)
        self.model.rotary_emb = NoRotation()
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


def register_attention() -> None:
    """Register ALiBi's attention and its float mask with transformers, under an own name."""
    AttentionInterface.register(ATTENTION, alibi_attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)


def alibi_attention(
    module: nn.Module,
    query: torch.Tensor,  # [batch, heads, queries, channels]
    key: torch.Tensor,  # [batch, heads, keys, channels]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # [batch, 1, queries, keys], 0 or the type's lowest number
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA with the heads' biases added to the mask, [batch, queries, heads, channels]."""
    keys = key.shape[-2]
    distance = torch.arange(1 - keys, 1, device=query.device, dtype=torch.float32)
    bias = alibi_slopes(query.shape[1]).to(query.device)[:, None, None] * distance  # [heads, 1, keys]
    mask = bias[None].to(query.dtype) if attention_mask is None else (attention_mask[..., :keys] + bias).to(query.dtype)
    return sdpa_attention_forward(module, query, key, value, mask.clamp(min=torch.finfo(query.dtype).min), **arguments)  # type: ignore[no-any-return]


def alibi_slopes(heads: int) -> torch.Tensor:
    """A slope per head: 2^(-8/n), 2^(-16/n), … for a power of two; else with every second of twice as many (the paper's code)."""
    power = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    more = [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)]
    return torch.tensor((first + more)[:heads])

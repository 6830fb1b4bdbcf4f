"""LongLoRA's shifted sparse attention (Chen et al. 2023, "LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models").

In training, a token attends only to tokens of its group. For half of the heads the groups are shifted by half a group, so that
information passes between groups. Evaluation and generation use full attention, unchanged.

Algorithm 1 of the paper rolls the tokens of the shifted heads around. The last half group and the first half group then share a group,
and the first tokens would see the last ones, which they are to predict; section 3.2 says that the mask must prevent that. Here they are
two smaller groups, as in the authors' code for fine-tuning on instructions. The last group may be smaller too, so a sequence can have any
length.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llmmod.errors import ConfigError, Problem
from llmmod.models.attention.rope import has_rope
from llmmod.upstream import replaced, require_upstream

require_upstream(__name__)

_KEY = "model.shift_attn"
_ATTENTION = torch.nn.functional.scaled_dot_product_attention


def shift_attention(model: Any, group_size: float) -> None:
    """Make a model attend within shifted groups while it is in training mode. Changes the model in place.

    Args:
        model: a PreTrainedModel with rotary positions and SDPA attention.
        group_size: tokens of a group; below 1: its share of the sequence's length, with padding, rounded up.

    Raises:
        ConfigError: the model doesn't have rotary positions or SDPA attention, or doesn't use transformers' attention interface.
    """
    config = model.config
    if not has_rope(config):
        found = f"true, but LongLoRA needs rotary positions, and {type(model).__name__} doesn't have any"
        raise ConfigError(Problem(_KEY, found, do="Leave it false"))
    if config._attn_implementation != "sdpa":
        found = f"true, but attention is '{config._attn_implementation}'"
        raise ConfigError(Problem(_KEY, found, "Allowed: sdpa", "Set model.attn_implementation=sdpa"))
    if config.model_type == "falcon":
        _shift_falcon(model, group_size)
        return
    if not model._supports_attention_backend:
        found = f"true, but {type(model).__name__} has its own attention code, which can't be replaced"
        raise ConfigError(Problem(_KEY, found, do="Leave it false"))
    name = f"llmmod_shifted_{group_size:g}"
    AttentionInterface.register(name, functools.partial(_forward, group_size=group_size))
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)


def shifted_attention(
    query: torch.Tensor,  # [batch, heads, seq, channels]
    key: torch.Tensor,  # [batch, key heads, seq, channels]
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    group_size: float,
    dropout: float = 0.0,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention within groups, [batch, heads, seq, channels]. The groups of the second half of the heads are shifted by half a group.

    Args:
        query, key, value: projections of the same tokens.
        mask: True where a query (row) may see a key (column), [batch or 1, 1, seq, seq]; None: a causal mask.
        group_size: as in `shift_attention`.
        dropout: probability.
        scale: factor of the scores; None: 1 / sqrt(channels).

    Raises:
        ValueError: there are more keys than queries.
    """
    heads, length = query.shape[1], query.shape[2]
    if key.shape[2] != length:
        raise ValueError(f"shifted attention needs whole sequences, but got {key.shape[2]} keys for {length} queries")
    group = group_tokens(group_size, length)
    attend = functools.partial(_ATTENTION, dropout_p=dropout, scale=scale)
    key, value = (repeat_kv(tensor, heads // tensor.shape[1]) for tensor in (key, value))
    parts = []
    for start, chosen in ((0, slice(0, heads // 2)), (group // 2, slice(heads // 2, heads))):
        half = torch.stack([query[:, chosen], key[:, chosen], value[:, chosen]])
        before = _grouped(attend, half[:, :, :, :start], _block(mask, 0, start), group=max(start, 1))
        after = _grouped(attend, half[:, :, :, start:], _block(mask, start, length), group=group)
        parts.append(torch.cat([before, after], dim=2))
    return torch.cat(parts, dim=1)


def group_tokens(group_size: float, length: int) -> int:
    """The number of tokens of a group in a sequence of `length` tokens."""
    return max(1, math.ceil(length * group_size) if group_size < 1 else min(int(group_size), length))


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    group_size: float,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls for each layer; [batch, seq, heads, channels]."""
    if not module.training:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
    if kwargs.get("softcap") is not None:
        raise ValueError(f"{type(module).__name__} caps its attention scores, which shifted attention doesn't support")
    output = shifted_attention(query, key, value, attention_mask, group_size=group_size, dropout=dropout, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def _grouped(attend: Callable[..., torch.Tensor], qkv: torch.Tensor, mask: torch.Tensor | None, *, group: int) -> torch.Tensor:
    """Attention within each group of `group` tokens. The last group is smaller if the length isn't a multiple.

    Args:
        attend: has the signature of torch's scaled_dot_product_attention.
        qkv: queries, keys and values, [3, batch, heads, seq, channels].
        mask: as in `shifted_attention`, for these tokens.
        group: tokens of a group.

    Returns:
        [batch, heads, seq, channels].
    """
    _, batch, heads, length, channels = qkv.shape
    if length == 0:
        return qkv[0]
    extra = -length % group
    count = (length + extra) // group
    groups = functional.pad(qkv, (0, 0, 0, extra)).reshape(3, batch, heads, count, group, channels).transpose(2, 3)
    query, key, value = groups.reshape(3, batch * count, heads, group, channels)
    blocks = None if mask is None else _diagonal(mask, extra, group).expand(batch, count, 1, group, group).flatten(0, 1)
    # The padding of the last group comes after its tokens, so the causal mask hides it.
    output = attend(query, key, value, attn_mask=blocks, is_causal=mask is None)
    return output.reshape(batch, count, heads, group, channels).transpose(1, 2).flatten(2, 3)[:, :, :length]


def _block(mask: torch.Tensor | None, start: int, end: int) -> torch.Tensor | None:
    if mask is None:
        return None
    allowed = mask if mask.dtype == torch.bool else mask >= 0  # added to the scores: 0 or as good as minus infinity
    return allowed[:, :, start:end, start:end]


def _diagonal(mask: torch.Tensor, extra: int, group: int) -> torch.Tensor:
    """The square blocks on the diagonal of a mask, [batch or 1, groups, 1, group, group]. Each token sees itself, also a padding token."""
    filled = functional.pad(mask, (0, extra, 0, extra))
    count = filled.shape[-1] // group
    blocks = filled.reshape(-1, count, group, count, group).diagonal(dim1=1, dim2=3).movedim(-1, 1)
    return (blocks | torch.eye(group, dtype=torch.bool, device=mask.device))[:, :, None]


def _shift_falcon(model: Any, group_size: float) -> None:
    """The same for Falcon. Its attention (transformers 5.23) calls torch's function directly instead of a registered one."""
    for module in model.modules():
        if type(module).__name__ == "FalconAttention":
            module.forward = functools.partial(_falcon_forward, module, type(module).forward, group_size)


def _falcon_forward(module: torch.nn.Module, forward: Callable[..., Any], group_size: float, *args: Any, **kwargs: Any) -> Any:
    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> torch.Tensor:
        return shifted_attention(query, key, value, attn_mask, group_size=group_size, dropout=dropout_p)

    if not module.training:
        return forward(module, *args, **kwargs)
    with replaced(torch.nn.functional, "scaled_dot_product_attention", attend):
        return forward(module, *args, **kwargs)

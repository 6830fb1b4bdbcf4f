"""Attention that stays within examples where several stand in one row: no padding, no leaking, and no more work than each takes alone.

A row is told apart by `cu_seq_lens_q`, the places where its examples begin and where the last ends, which transformers (5.23) hands down
to the attention function. Flash attention's kernels of variable length read it themselves. Here SDPA gets the same: it runs causally over
one example after the other. transformers' own way without such a kernel, a mask over the row made from `position_ids`, is exact as well
but pays for every pair of tokens of the row: 80 real tokens a CPU second against 108 (SmolLM2, LoRA, rows of 1,024 with five examples).

Several answers can share their prompt: one stands behind it, and each other is a branch, a segment that has more keys than tokens by
`cu_seq_lens_k`. Those it has more are the first of the last segment that is no branch, and come before its own.

Which models can be kept apart, `apart` says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmmod.models.apart import is_flash, why_not_attention, why_not_family

NAME = "llmmod_segments"
BOUNDARIES = "cu_seq_lens_q"  # int32 [segments + 1], from 0 to the row's length
KEYS = "cu_seq_lens_k"  # the same of the keys that each sees; without branches the very same


def why_not(model: Any, *, branches: bool = False) -> str | None:
    """Why several examples can't stand in one row of this model; None where they can.

    Args:
        model: a PreTrainedModel or PeftModel.
        branches: whether they are to share their beginnings.
    """
    attention = model.config._attn_implementation
    reason = why_not_family(model.config.model_type)
    return reason or why_not_attention("sdpa" if attention == NAME else attention, branches=branches)


@contextmanager
def by_segments(model: Any, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Within it, the model's attention stays within the examples of `inputs`, if these have boundaries; forward and backward.

    Only then the model's attention is another than its own, so that generation and padded batches are as ever. Both passes belong into
    the block: with gradient checkpointing the backward pass computes attention anew.

    Raises:
        ValueError: the model's family doesn't hand the boundaries down to its attention, or its attention takes no notice of them.
    """
    if BOUNDARIES not in inputs or is_flash(model.config._attn_implementation):
        yield
        return
    if reason := why_not(model):
        raise ValueError(reason)
    config, own = model.config, model.config._attn_implementation
    AttentionInterface.register(NAME, _opaque() if "torch._dynamo" in sys.modules else segments_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own


def segments_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, row, channels]
    key: torch.Tensor,  # [1, key heads, row, channels]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over each example of the row by itself, [1, row, heads, channels].

    Args:
        module: the layer.
        query, key, value: of the row.
        attention_mask: None: the boundaries say all of it.
        kwargs: `cu_seq_lens_q`, `cu_seq_lens_k`; `sliding_window`, tokens that a token sees, itself included; and what else SDPA takes.

    Raises:
        ValueError: there are no boundaries, so that examples would see each other.
    """
    if kwargs.get(BOUNDARIES) is None or attention_mask is not None:
        raise ValueError(f"{type(module).__name__} was to keep the examples of a row apart, but got no {BOUNDARIES}")
    window = kwargs.get("sliding_window")
    lengths = kwargs[BOUNDARIES].diff().tolist()
    before = (kwargs.get(KEYS, kwargs[BOUNDARIES]).diff() - kwargs[BOUNDARIES].diff()).tolist()
    outputs, trunk = [], (key, value)
    parts = (torch.split(tensor, lengths, dim=2) for tensor in (query, key, value))
    for shared, queries, keys, values in zip(before, *parts, strict=True):
        if not queries.shape[2]:
            continue  # boundaries may be filled up to a fixed number
        if shared:
            keys, values = (torch.cat([stem[:, :, :shared], own], dim=2) for stem, own in zip(trunk, (keys, values), strict=True))
        else:
            trunk = keys, values
        mask = _mask(queries.shape[2], shared, window, query.device)
        outputs.append(sdpa_attention_forward(module, queries, keys, values, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


@cache
def _opaque() -> Any:
    """`segments_attention` as torch.compile leaves it alone: the shapes in it are other ones in every batch."""
    return torch.compiler.disable(segments_attention)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=32)
def _mask(length: int, before: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """True where the query of a row may see the key of a column, [1, 1, length, before + length]; None where all that came before it."""
    if not before and (window is None or length <= window):
        return None
    whole = torch.ones(length, before + length, dtype=torch.bool, device=device).tril(before)
    return (whole if window is None else whole.triu(before + 1 - window))[None, None]


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """No mask over the row."""

"""Attention within each example of a row with several, by one of two methods.

Segments: `cu_seq_lens_q` has the starts of a row's examples and the end of the last, and transformers (5.23) passes it to the attention
function. Flash attention's kernels of variable length read it themselves. Here SDPA does the same: it runs causally over one example after
the other. Several answers can share their prompt: one follows it, and each other is a branch, a segment with more keys than tokens, by
`cu_seq_lens_k`. The additional keys are the first ones of the last segment that isn't a branch, and precede the branch's own.

Mask: models that compute attention themselves (BLOOM, Falcon, GPT-J) add transformers' mask to their scores, and here it also hides other
examples. It is exact too, but computes every pair of tokens of the row: 80 real tokens per CPU second instead of 108 (SmolLM2, LoRA, rows
of 1,024 with five examples).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, and_masks

from llmmod.upstream import require_upstream

require_upstream(__name__)

NAME = "llmmod_segments"
BOUNDARIES = "cu_seq_lens_q"  # int32 [segments + 1], from 0 to the row's length
KEYS = "cu_seq_lens_k"  # the same for the keys of each segment; without branches it is the same tensor
# The lengths again, on the host (`data.collators.segment_boundaries`): reading a number on an accelerator stalls it.
LENGTHS = "segment_lengths"


class PackingMethod(StrEnum):
    """The method that keeps the examples of a row apart."""

    segments = "segments"
    mask = "mask"


@contextmanager
def isolate_examples(config: Any, inputs: Mapping[str, Any], method: PackingMethod) -> Iterator[None]:
    """A context in which the attention of a model stays within the examples of `inputs`; forward and backward.

    Args:
        config: the model's.
        inputs: a row with boundaries.
        method: one that is known to be exact for the model's class.
    """
    own = config._attn_implementation
    if method is PackingMethod.mask:
        lengths = inputs[BOUNDARIES].diff().long()
        examples = torch.arange(len(lengths), device=lengths.device)  # [row], the number of each token's example
        numbers = torch.repeat_interleave(examples, lengths, output_size=inputs["input_ids"].shape[1])
        mask = functools.partial(_within_examples, ALL_MASK_ATTENTION_FUNCTIONS[own], numbers)
        ALL_MASK_ATTENTION_FUNCTIONS[own] = mask  # only in this mapping; registered functions stay
        try:
            yield
        finally:
            del ALL_MASK_ATTENTION_FUNCTIONS[own]
        return
    # transformers (5.23) doesn't have a mask function of this name, so it neither creates a mask nor searches `position_ids` for examples.
    AttentionInterface.register(NAME, _opaque() if "torch._dynamo" in sys.modules else varlen_attention)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, row, channels]
    key: torch.Tensor,  # [1, key heads, row, channels]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each example of the row, [1, row, heads, channels].

    Args:
        module: the layer.
        query, key, value: of the row.
        attention_mask: None, since the boundaries define the mask.
        kwargs: `cu_seq_lens_q`, `cu_seq_lens_k`, and `segment_lengths`, which are read instead if the collator gives them;
            `sliding_window`, tokens that a token attends to, with itself; and SDPA's other arguments.

    Raises:
        ValueError: the boundaries are missing, so examples would attend to each other.
    """
    if kwargs.get(BOUNDARIES) is None or attention_mask is not None:
        raise ValueError(f"{type(module).__name__} was to keep the examples of a row apart, but got no {BOUNDARIES}")
    window, row = kwargs.get("sliding_window"), kwargs.get(LENGTHS) or _read(kwargs[BOUNDARIES], kwargs.get(KEYS))
    outputs, trunk = [], (key, value)
    parts = (torch.split(tensor, row.lengths, dim=2) for tensor in (query, key, value))
    for length, seen, queries, keys, values in zip(row.lengths, row.keys, *parts, strict=True):
        shared = seen - length
        if not length:
            continue  # boundaries may be padded to a fixed number
        if shared:
            keys, values = (torch.cat([stem[:, :, :shared], own], dim=2) for stem, own in zip(trunk, (keys, values), strict=True))
        else:
            trunk = keys, values
        if (kind := (length, shared, window, query.device)) not in row.masks:
            row.masks[kind] = _mask(*kind)
        mask = row.masks[kind]
        outputs.append(sdpa_attention_forward(module, queries, keys, values, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


@cache
def _opaque() -> Any:
    """`varlen_attention`, excluded from torch.compile: its shapes differ in every batch."""
    return torch.compiler.disable(varlen_attention)  # type: ignore[no-untyped-call]


def _read(boundaries: torch.Tensor, keys: torch.Tensor | None) -> SimpleNamespace:
    """The contents of `segment_lengths`, for a batch without it, from a user's own collator."""
    lengths: list[int] = boundaries.diff().tolist()
    return SimpleNamespace(lengths=lengths, keys=lengths if keys is None else keys.diff().tolist(), masks={})


def _mask(length: int, before: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """True where a row's query attends to a column's key, [1, 1, length, before + length]; None for causal attention."""
    if not before and (window is None or length <= window):
        return None
    whole = torch.ones(length, before + length, dtype=torch.bool, device=device).tril(before)
    return (whole if window is None else whole.triu(before + 1 - window))[None, None]


def _within_examples(own: Any, numbers: torch.Tensor, *args: Any, mask_function: Any, **kwargs: Any) -> torch.Tensor | None:
    """The own mask of an attention implementation, without the keys of other examples."""

    def same(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return numbers[query] == numbers[key]

    kwargs["allow_is_causal_skip"] = False
    return own(*args, mask_function=and_masks(mask_function, same), **kwargs)  # type: ignore[no-any-return]

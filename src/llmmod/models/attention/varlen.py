"""Attention that stays within examples where several stand in one row, by one of two methods.

By segments: a row is told apart by `cu_seq_lens_q`, the places where its examples begin and where the last ends, which transformers (5.23)
hands down to the attention function. Flash attention's kernels of variable length read it themselves. Here SDPA gets the same: it runs
causally over one example after the other. Several answers can share their prompt: one stands behind it, and each other is a branch, a
segment that has more keys than tokens by `cu_seq_lens_k`. Those it has more are the first of the last segment that is no branch, and come
before its own.

By a mask: models that compute attention themselves (BLOOM, Falcon, GPT-J) add transformers' mask to their scores, and here it leaves out
other examples besides. It is exact as well but pays for every pair of tokens of the row: 80 real tokens a CPU second against 108 (SmolLM2,
LoRA, rows of 1,024 with five examples).
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
KEYS = "cu_seq_lens_k"  # the same of the keys that each sees; without branches the very same
# The lengths once more, on the host (`data.collators.segment_boundaries`): an accelerator halts wherever one of its own numbers is read.
LENGTHS = "segment_lengths"


class PackingMethod(StrEnum):
    """How the examples of a row are kept apart."""

    segments = "segments"
    mask = "mask"


@contextmanager
def isolate_examples(config: Any, inputs: Mapping[str, Any], method: PackingMethod) -> Iterator[None]:
    """A context in which the attention of a model stays within the examples of `inputs`; forward and backward.

    Args:
        config: the model's.
        inputs: a row with boundaries.
        method: one that the model's class is known to be exact by.
    """
    own = config._attn_implementation
    if method is PackingMethod.mask:
        lengths = inputs[BOUNDARIES].diff().long()
        examples = torch.arange(len(lengths), device=lengths.device)  # of each token of the row, [row], the number of its example
        numbers = torch.repeat_interleave(examples, lengths, output_size=inputs["input_ids"].shape[1])
        mask = functools.partial(_within_examples, ALL_MASK_ATTENTION_FUNCTIONS[own], numbers)
        ALL_MASK_ATTENTION_FUNCTIONS[own] = mask  # of this mapping alone; what is registered stays
        try:
            yield
        finally:
            del ALL_MASK_ATTENTION_FUNCTIONS[own]
        return
    # Without a mask of its own by this name transformers (5.23) makes none, and doesn't search `position_ids` for packed examples.
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
    """Attention over each example of the row by itself, [1, row, heads, channels].

    Args:
        module: the layer.
        query, key, value: of the row.
        attention_mask: None: the boundaries say all of it.
        kwargs: `cu_seq_lens_q`, `cu_seq_lens_k`, and where the collator gave them, `segment_lengths`, which are then read instead;
            `sliding_window`, tokens that a token sees, itself included; and what else SDPA takes.

    Raises:
        ValueError: there are no boundaries, so that examples would see each other.
    """
    if kwargs.get(BOUNDARIES) is None or attention_mask is not None:
        raise ValueError(f"{type(module).__name__} was to keep the examples of a row apart, but got no {BOUNDARIES}")
    window, row = kwargs.get("sliding_window"), kwargs.get(LENGTHS) or _read(kwargs[BOUNDARIES], kwargs.get(KEYS))
    outputs, trunk = [], (key, value)
    parts = (torch.split(tensor, row.lengths, dim=2) for tensor in (query, key, value))
    for length, seen, queries, keys, values in zip(row.lengths, row.keys, *parts, strict=True):
        shared = seen - length
        if not length:
            continue  # boundaries may be filled up to a fixed number
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
    """`varlen_attention` as torch.compile leaves it alone: the shapes in it are other ones in every batch."""
    return torch.compiler.disable(varlen_attention)  # type: ignore[no-untyped-call]


def _read(boundaries: torch.Tensor, keys: torch.Tensor | None) -> SimpleNamespace:
    """What `segment_lengths` has, of a batch that came without it: from a collator of the user's own."""
    lengths: list[int] = boundaries.diff().tolist()
    return SimpleNamespace(lengths=lengths, keys=lengths if keys is None else keys.diff().tolist(), masks={})


def _mask(length: int, before: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """True where the query of a row may see the key of a column, [1, 1, length, before + length]; None where all that came before it."""
    if not before and (window is None or length <= window):
        return None
    whole = torch.ones(length, before + length, dtype=torch.bool, device=device).tril(before)
    return (whole if window is None else whole.triu(before + 1 - window))[None, None]


def _within_examples(own: Any, numbers: torch.Tensor, *args: Any, mask_function: Any, **kwargs: Any) -> torch.Tensor | None:
    """The mask that an implementation of attention makes itself, without the keys of other examples."""

    def same(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return numbers[query] == numbers[key]

    kwargs["allow_is_causal_skip"] = False
    return own(*args, mask_function=and_masks(mask_function, same), **kwargs)  # type: ignore[no-any-return]

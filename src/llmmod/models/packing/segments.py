"""Examples that stay apart where several stand in one row: no padding, no leaking, and no more work than each takes alone.

Whether a model's class can do it, and in which of the two ways of `row_attention`, is known of the families that `apart` names, and
measured of every other (`leaks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llmmod.models.attention.varlen import BOUNDARIES, KEYS, NAME, PackingMethod, isolate_examples, segments_attention
from llmmod.models.families.registry import PACKED_FAMILIES, is_flash, why_not_packed_with
from llmmod.models.loading.structure import base_model
from llmmod.models.packing.support import PackingSupport, packing_support
from llmmod.upstream import require_upstream

require_upstream(__name__)

__all__ = ["BOUNDARIES", "KEYS", "packed_attention", "segments_attention", "why_not_packed"]


def why_not_packed(model: Any, *, branches: bool = False, packed: bool = True) -> str | None:
    """Why several examples can't, or had better not, stand in one row of this model; None where they can.

    Args:
        model: a PreTrainedModel or PeftModel.
        branches: whether they are to share their beginnings.
        packed: whether they stand in one row anyway, so that nothing is won by padding.
    """
    found = support_for(model)
    if found.reason is not None:
        return found.reason
    name = type(base_model(model)).__name__
    if branches and not found.branches:
        with_it = f"attention '{model.config._attn_implementation}'" if is_flash(model.config._attn_implementation) else name
        return f"{with_it} can't let two answers share their prompt"
    if found.way is PackingMethod.mask and not packed:
        return f"{name} keeps the examples of a row apart by a mask over all of it, which costs more than padding"
    return None


@contextmanager
def packed_attention(model: Any, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Within it, the model's attention stays within the examples of `inputs`, if these have boundaries; forward and backward.

    Only then the model's attention is another than its own, so that generation and padded batches are as ever. Both passes belong into
    the block: with gradient checkpointing the backward pass computes attention anew.

    Raises:
        ValueError: the model's class lets examples see each other.
    """
    if BOUNDARIES not in inputs or is_flash(model.config._attn_implementation):
        yield
        return
    found = support_for(model)
    if found.way is None:
        raise ValueError(found.reason)
    with isolate_examples(model.config, inputs, found.way):
        yield


def support_for(model: Any) -> PackingSupport:
    """How the examples of a row are kept apart in this model, or why they can't be."""
    attention = "sdpa" if model.config._attn_implementation == NAME else model.config._attn_implementation
    if reason := why_not_packed_with(attention):
        return PackingSupport(reason=reason)
    base = base_model(model)
    from_code = type(base).__module__.startswith("transformers_modules.")  # a checkpoint's own, under whatever name
    if model.config.model_type in PACKED_FAMILIES and attention != "eager" and not from_code:
        return PackingSupport(way=PackingMethod.segments, branches=not is_flash(attention))
    found = packing_support(base)
    if is_flash(attention) and found.way is PackingMethod.mask:
        return PackingSupport(reason=f"attention '{attention}' can't keep the examples of a row apart in {type(base).__name__}")
    return PackingSupport(way=found.way, branches=found.branches and not is_flash(attention), reason=found.reason)

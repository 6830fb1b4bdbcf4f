"""Rotary positions that change with a text's length, kept to each text's own length where several stand in one row.

Two kinds do: `longrope` (Ding et al. 2024, "LongRoPE"; Phi-4-mini) has one set of frequencies for texts within the trained length and one
for longer ones, `dynamic` (NTK-aware scaling; InternLM) raises the base by how much longer a text is. transformers (5.23) goes by the
longest text of a batch, so that in a packed row one long example changes the short ones; and for `dynamic` it goes on with the base of the
longest text so far, where the code of 2023 worked it out anew for each. Here both go by the text itself. Several rows are still computed
alike, by the longest of them: a cache that is filled row by row has to hold one kind of positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from llmmod.errors import ConfigError, Problem

_BY_LENGTH = frozenset({"longrope", "dynamic"})


def keep_own_lengths(model: Any) -> None:
    """Have a model's positions go by each text's own length; it is changed in place, unless its positions never change."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if _BY_LENGTH.intersection(kinds.values() if isinstance(kinds, dict) else (kinds,)):
            module.forward = functools.partial(_forward, module, type(module).forward)


def own_lengths(position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each token of a row, how long its text is, and where that begins in the row; both int64 [seq].

    Args:
        position_ids: [seq]; a text ends where the next position isn't one more. One that begins later than 0 goes on from another's
            beginning, which counts as its own.
    """
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[1:] = position_ids[1:] != position_ids[:-1] + 1
    starts = begins.nonzero()[:, 0]
    ends = torch.cat([starts[1:], starts.new_tensor([len(position_ids)])])
    number = begins.cumsum(0) - 1
    return position_ids[ends - 1][number] + 1, starts[number]


def _forward(
    module: Any,
    stock: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    x: torch.Tensor,
    position_ids: torch.Tensor,  # [batch or 1, seq]
    layer_type: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, [batch or 1, seq, channels], as transformers' own `forward` gives them for each text alone."""
    kind, more = (module.rope_type, {}) if layer_type is None else (module.rope_type[layer_type], {"layer_type": layer_type})
    if kind == "dynamic":
        _forget(module, layer_type)
    if kind not in _BY_LENGTH or position_ids.shape[0] > 1:
        return stock(module, x, position_ids, **more)
    border = _border(module, layer_type)
    lengths, starts = own_lengths(position_ids[0])
    alike = (lengths > border).long() if kind == "longrope" else lengths.clamp(min=border)
    kinds = sorted(set(alike.tolist()))
    if len(kinds) == 1:
        return stock(module, x, position_ids, **more)
    _refuse_shared(position_ids[0], alike, lengths, starts, border)
    result: tuple[torch.Tensor, ...] = ()
    for value in kinds:
        chosen = alike == value
        if kind == "dynamic":
            _forget(module, layer_type)
        parts = stock(module, x, position_ids[:, chosen], **more)
        result = result or tuple(part.new_empty(1, len(chosen), *part.shape[2:]) for part in parts)
        for whole, part in zip(result, parts, strict=True):
            whole[:, chosen] = part
    return result  # type: ignore[return-value]


def _border(module: Any, layer_type: str | None) -> int:
    """The longest text, in tokens, whose positions are those of the shortest."""
    parameters = module.config.rope_parameters
    parameters = parameters if layer_type is None else parameters[layer_type]
    return int(parameters.get("original_max_position_embeddings") or module.original_max_seq_len)


def _forget(module: Any, layer_type: str | None) -> None:
    """Take a module of `dynamic` positions back to what it was before the first text."""
    prefix = "" if layer_type is None else f"{layer_type}_"
    setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
    original = getattr(module, f"{prefix}original_inv_freq")
    setattr(module, f"{prefix}inv_freq", original.to(getattr(module, f"{prefix}inv_freq").device))


def _refuse_shared(positions: torch.Tensor, alike: torch.Tensor, lengths: torch.Tensor, starts: torch.Tensor, border: int) -> None:
    """Refuse a row in which an answer shares a prompt that stands in it with other positions than it would have before this answer.

    Args:
        positions, lengths, starts: of each token, [seq].
        alike: the same number where positions are computed alike, [seq].
        border: as from `_border`.
    """
    trunk = 0
    for start in sorted(set(starts.tolist())):
        if positions[start] == 0:
            trunk = start
        elif alike[start] != alike[trunk]:
            found = (
                f"two answers make texts of {lengths[trunk]} and {lengths[start]} tokens, and beyond {border} the positions of this model "
                "change: they can't share their prompt"
            )
            raise ConfigError(Problem("dataset.cutoff_len", found, do=f"Set it to {border}, or have them padded by training.collator"))

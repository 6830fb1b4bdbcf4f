"""A family's table as transformers' rules for converting weights, which hold while a checkpoint is read or written.

transformers keeps such rules in a table of the whole process. They are put there for one call and taken out again: everything else that
is loaded in the meantime or afterwards is loaded as if they didn't exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.nn import functional
from transformers import conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, Split, WeightConverter, WeightRenaming

from llmmod.models.families.family import NATIVE_LAYERS, RECOMPUTED, Family

_ROWS = 256  # normalised together: a few megabytes of float32 at a time


@contextmanager
def converting(model_class: Any, family: Family, *, depth: int, unit_rows: bool = True) -> Iterator[None]:
    """While it lasts, `model_class.from_pretrained` reads checkpoints of a family.

    Args:
        model_class: the native class.
        family: whose layout is read.
        depth: the number of layers.
        unit_rows: whether to normalise what the family's own code normalises.
    """
    name = model_class.__name__
    conversion_mapping.get_checkpoint_conversion_mapping(name)  # fills the table
    table: dict[str, Any] = conversion_mapping._checkpoint_conversion_mapping_cache
    rules = conversions(family, depth=depth, unit_rows=unit_rows)
    known = {*conversion_mapping.USER_REGISTERED_MAPPINGS, name}
    ignored = [*(model_class._keys_to_ignore_on_load_unexpected or []), RECOMPUTED.pattern]
    with (
        mock.patch.dict(table, {name: rules}),
        mock.patch.object(conversion_mapping, "USER_REGISTERED_MAPPINGS", known),
        mock.patch.object(model_class, "_keys_to_ignore_on_load_unexpected", ignored),
    ):
        yield


def conversions(family: Family, *, depth: int, unit_rows: bool = True) -> list[Any]:
    """The rules, in the order in which they are applied; read backwards, they write the original layout."""
    outside = [_renaming(old, new) for old, new in family.outside.items() if old != new]
    after = [_renaming(f"{family.layers}.{depth + family.first_layer}.{old}", new) for old, new in family.after_layers.items()]
    shift = family.first_layer
    moved = [_renaming(f"{family.layers}.{i + shift}.", f"{NATIVE_LAYERS}.{i}.") for i in range(depth) if shift]
    if not shift and family.layers != NATIVE_LAYERS:
        moved = [_renaming(f"{family.layers}.", f"{NATIVE_LAYERS}.")]
    inside = [_renaming(f".{old}", f".{new[0]}", anchor="") for old, new in family.in_layer.items() if len(new) == 1 and old != new[0]]
    split = [
        WeightConverter(re.escape(old), list(new), operations=[_rows_of(family)]) for old, new in family.in_layer.items() if len(new) > 1
    ]
    unit = [WeightConverter(name, name, operations=[UnitRows()]) for name in family.unit_rows if unit_rows]
    return [*outside, *after, *moved, *inside, *split, *unit]


def _renaming(old: str, new: str, anchor: str = "^") -> WeightRenaming:
    return WeightRenaming(anchor + re.escape(old), anchor + re.escape(new))


def _rows_of(family: Family) -> ConversionOps:
    """Thirds where queries, keys and values are of one size, else as many rows as each matrix of the model has."""
    return Split(dim=0) if "num_key_value_heads" in family.required else Chunk(dim=0)


class UnitRows(ConversionOps):
    """Rows divided by their Euclidean norms, as Baichuan2's `NormHead` does each time it is used; in float32, rounded at the end.

    It has no inverse: the norms are gone, and with them what the function didn't depend on.
    """

    @torch.no_grad()
    def convert(self, input_dict: dict[str, Any], **ignored: Any) -> dict[str, torch.Tensor]:
        """Name -> matrix [rows, channels], normalised."""
        return {name: unit_rows(tensors[0] if isinstance(tensors, list) else tensors) for name, tensors in input_dict.items()}

    @property
    def reverse_op(self) -> ConversionOps:
        """The matrix as it is."""
        return AsItIs()


class AsItIs(ConversionOps):
    """No change."""

    def convert(self, input_dict: dict[str, Any], **ignored: Any) -> dict[str, Any]:
        """The same."""
        return input_dict

    @property
    def reverse_op(self) -> ConversionOps:
        """No change either."""
        return self


def unit_rows(weight: torch.Tensor) -> torch.Tensor:
    """A matrix [rows, channels] of the same type, every row of length 1."""
    result = torch.empty_like(weight)
    for start in range(0, weight.shape[0], _ROWS):
        result[start : start + _ROWS] = functional.normalize(weight[start : start + _ROWS].float())
    return result

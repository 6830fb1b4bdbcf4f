"""A family's table as transformers' rules for converting weights: read once into today's class, and written back in the original layout.

transformers keeps such rules in a table of the whole process. They are put there for one call and taken out again: everything else that
is loaded in the meantime or afterwards is loaded as if they didn't exist.

The original layout is what `export.layout=original` writes, and what the 13B Baichuans always have.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, Split, WeightConverter, WeightRenaming

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import has_tokenizer, tokenizer_files
from llmmod.files.paths import resolve_path
from llmmod.models.families.family import NATIVE_LAYERS, RECOMPUTED, Family
from llmmod.models.families.registry import family_of
from llmmod.upstream import replaced, require_upstream

require_upstream(__name__)

# Where a configuration keeps the config.json it was made from; a saved native checkpoint has it too, so that it can be written back.
ORIGINAL = "original_config"
_ROWS = 256  # normalised together: a few megabytes of float32 at a time
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # of a row's length, after rounding to the type


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
        replaced(conversion_mapping, "_checkpoint_conversion_mapping_cache", {**table, name: rules}),
        replaced(conversion_mapping, "USER_REGISTERED_MAPPINGS", known),
        replaced(model_class, "_keys_to_ignore_on_load_unexpected", ignored),
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
    # Thirds where queries, keys and values are of one size, else as many rows as each matrix of the model has.
    rows = Split if "num_key_value_heads" in family.required else Chunk
    split = [WeightConverter(re.escape(old), list(new), operations=[rows(dim=0)]) for old, new in family.in_layer.items() if len(new) > 1]
    unit = [WeightConverter(name, name, operations=[UnitRows()]) for name in family.unit_rows if unit_rows]
    return [*outside, *after, *moved, *inside, *split, *unit]


def _renaming(old: str, new: str, anchor: str = "^") -> WeightRenaming:
    return WeightRenaming(anchor + re.escape(old), anchor + re.escape(new))


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
        return Unchanged()


class Unchanged(ConversionOps):
    """What is written as it is."""

    def convert(self, input_dict: dict[str, Any], **ignored: Any) -> dict[str, Any]:
        """The same."""
        return input_dict

    @property
    def reverse_op(self) -> ConversionOps:
        """Itself."""
        return self


def unit_rows(weight: torch.Tensor) -> torch.Tensor:
    """A matrix [rows, channels] of the same type, every row of length 1."""
    result = torch.empty_like(weight)
    for start in range(0, weight.shape[0], _ROWS):
        result[start : start + _ROWS] = functional.normalize(weight[start : start + _ROWS].float())
    return result


def has_unit_rows(weight: torch.Tensor) -> bool:
    """Whether each row of a matrix [rows, channels] has length 1, as far as its type can say; a row of zeros counts."""
    lengths = weight.detach().float().norm(dim=-1)
    return bool((((lengths - 1).abs() < _TOLERANCE.get(weight.dtype, 1e-2)) | (lengths == 0)).all())


def original_config(config: Any) -> dict[str, Any] | None:
    """The config.json that a native configuration was made from; None where it was native itself."""
    raw: dict[str, Any] | None = getattr(config, ORIGINAL, None)
    return config.to_dict() if raw is None and getattr(config, "is_original", False) else raw


def family_of_model(model: Any) -> Family | None:
    """The family a model was loaded from; None where it came in the native layout."""
    raw = original_config(model.config)
    return None if raw is None else family_of(raw, path=str(model.config._name_or_path))


@contextmanager
def original_names(model: Any) -> Iterator[None]:
    """While it lasts, `model.save_pretrained` writes the weights under the names they have in the original layout."""
    family = family_of_model(model)
    own = model._weight_conversions if hasattr(model, "_weight_conversions") else None
    model._weight_conversions = [] if family is None else conversions(family, depth=model.config.num_hidden_layers)
    try:
        yield
    finally:
        model._weight_conversions = own


def check_original_layout(model: Any, *, key: str) -> None:
    """Refuse a model that can't be written in the layout that its checkpoint came in.

    Args:
        model: a PreTrainedModel.
        key: the configuration key that asks for it.

    Raises:
        ConfigError: it came in the native layout, or its head isn't what the original code takes it for.
    """
    family = family_of_model(model)
    if family is None:
        raise ConfigError(Problem(key, f"'{model.config._name_or_path}' came in the native layout; it has no other", "Allowed: native"))
    if family.unit_rows and not has_unit_rows(model.get_output_embeddings().weight):
        found = f"{family.name}'s own code divides each row of the head by its length, and this head was trained without that"
        raise ConfigError(Problem(key, found, "Allowed: native"))


def copy_original_files(model: Any, directory: Path) -> bool:
    """Copy tokenizer and Python code of the original checkpoint, which old programs read, where it is a directory of this machine.

    Returns:
        Whether there was a tokenizer among them.
    """
    source = resolve_path(str(model.config._name_or_path))
    if not isinstance(source, Path) or not source.is_dir():
        return False
    for file in {*source.glob("*.py"), *tokenizer_files(source)}:
        shutil.copy(file, directory)
    return has_tokenizer(source)


def write_original_config(model: Any, directory: Path) -> None:
    """Put the original config.json in the place of a native one, with the type that the weights are written in."""
    raw = dict(original_config(model.config) or {})
    raw.pop("dtype", None)
    raw["torch_dtype"] = str(model.dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

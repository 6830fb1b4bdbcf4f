"""A checkpoint's config.json as the configuration of the native class.

A family's table as transformers' rules for converting weights, which hold while a checkpoint is read or written.

transformers keeps such rules in a table of the whole process. They are put there for one call and taken out again: everything else that
is loaded in the meantime or afterwards is loaded as if they didn't exist.

Original checkpoints of 2023 as models of today's classes: read once, converted on the way, nothing of their own code run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, Split, WeightConverter, WeightRenaming
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY
from llmmod.models.families.alibi import BaichuanConfig, BaichuanForCausalLM
from llmmod.models.families.family import NATIVE_LAYERS, RECOMPUTED, Family, Raw
from llmmod.models.families.layouts import HEAD_IS_FINAL
from llmmod.upstream import replaced, require_upstream

require_upstream(__name__)

# Where a configuration keeps the config.json it was made from; a saved native checkpoint has it too, so that it can be written back.
ORIGINAL = "original_config"


def native_config(family: Family, raw: Raw) -> Any:
    """The native configuration.

    Raises:
        ConfigError: as `Family.native_fields`.
    """
    fields = family.native_fields(raw)
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    return config_class(family.native)(**fields, dtype=dtype, **{ORIGINAL: dict(raw)})


def config_class(model_type: str) -> Any:
    """The configuration's class of a model_type, our own among them.

    Raises:
        KeyError: there is none.
    """
    return BaichuanConfig if model_type == BaichuanConfig.model_type else CONFIG_MAPPING[model_type]


def model_class(config: Any) -> Any:
    """The class of causal language model that a native configuration is loaded as."""
    return BaichuanForCausalLM if isinstance(config, BaichuanConfig) else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def initial_model(config: Any, *, dtype: torch.dtype) -> Any:
    """A model of a configuration's initial weights, of any class that transformers has, or our own."""
    if isinstance(config, BaichuanConfig):
        return BaichuanForCausalLM._from_config(config, dtype=dtype)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def original_config(config: Any) -> dict[str, Any] | None:
    """The config.json that a native configuration was made from, None where it was native itself."""
    raw: dict[str, Any] | None = getattr(config, ORIGINAL, None)
    return config.to_dict() if raw is None and isinstance(config, BaichuanConfig) else raw


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


_CODE = ("trust_remote_code", "code_revision")


def load_original(path: str, family: Family, config: Any, **arguments: Any) -> Any:
    """A family's checkpoint as a model of the native class.

    Args:
        path: a directory or hub id.
        family: as `registry.family_of` finds it.
        config: as `config.native_config` makes it.
        arguments: the rest of from_pretrained's.

    Returns:
        The model, or model and loading info where `output_loading_info` asks for both.

    Raises:
        ConfigError: the checkpoint has weights that the layout doesn't.
    """
    given = {name: value for name, value in arguments.items() if name not in _CODE}
    native = model_class(config)
    final = bool((original_config(config) or {}).get(HEAD_IS_FINAL))
    with converting(native, family, depth=config.num_hidden_layers, unit_rows=not final):
        model, info = native.from_pretrained(path, config=config, **given | {"output_loading_info": True})
    # With the rules kept, what is saved would have the original names, and a trainer that resumes from it would find none of its own:
    # it warns, and goes on from the base model (transformers 5.23; issues 43701, 48805).
    model._weight_conversions = []
    _refuse_strangers(info, path, family, depth=config.num_hidden_layers)
    return (model, info) if arguments.get("output_loading_info") else model


def _refuse_strangers(info: dict[str, Any], path: str, family: Family, *, depth: int) -> None:
    """Refuse weights that have no place: whatever they do in the original, the native model wouldn't."""
    strangers = sorted(name for name in info["unexpected_keys"] if not RECOMPUTED.search(name) and not _beyond(name, depth))
    if strangers:
        found = f"'{path}' is not the layout of {family.name} that its config.json says: no place for {len(strangers)} weights"
        raise ConfigError(Problem(PATH_KEY, f"{found}, among them {strangers[0]}"))


def _beyond(name: str, depth: int) -> bool:
    """Whether a weight is of a layer that was asked to be left out."""
    match = re.match(rf"{re.escape(NATIVE_LAYERS)}\.(\d+)\.", name)
    return match is not None and int(match[1]) >= depth

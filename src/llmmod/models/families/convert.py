"""A family's table as rules for converting names and weights: reading a checkpoint or an adapter, and writing the original layout.

transformers keeps rules for checkpoints in a table of the process. They are added for one call and removed again, so that they don't
affect other models that are loaded meanwhile or later.

`export.layout=original` writes the original layout, and the 13B Baichuans always have it. For LoRA, target modules may have original names
that users know, and an adapter may have been trained with the original code.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
from llmmod.models.families.layouts import families_of_class, family_of
from llmmod.upstream import replaced, require_upstream

require_upstream(__name__)

log = logging.getLogger(__name__)

# The field of a configuration with its original config.json; a saved native checkpoint has it too, so that it can be written back.
ORIGINAL = "original_config"
_ROWS = 256  # normalised together: a few megabytes of float32 at a time
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # for a row's length, after rounding to the dtype
_PREFIX = "base_model.model."  # peft's prefix of module names in an adapter's file
_TUNED = re.compile(r"\.(?=lora_|weight$|bias$|base_layer\.|modules_to_save\.)")  # where the module's name ends
_COPIED = ("lora_A", "lora_embedding_A")  # these take the input, which is the same for all parts of a split matrix


@contextmanager
def converting(model_class: Any, family: Family, *, depth: int, unit_rows: bool = True) -> Iterator[None]:
    """A context in which `model_class.from_pretrained` reads checkpoints of a family.

    Args:
        model_class: the native class.
        family: of the layout.
        depth: the number of layers.
        unit_rows: whether to normalise the matrices that the family's own code normalises.
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
    """The rules in the order of their application; reversed, they write the original layout."""
    outside = [_renaming(old, new) for old, new in family.outside.items() if old != new]
    after = [_renaming(f"{family.layers}.{depth + family.first_layer}.{old}", new) for old, new in family.after_layers.items()]
    shift = family.first_layer
    moved = [_renaming(f"{family.layers}.{i + shift}.", f"{NATIVE_LAYERS}.{i}.") for i in range(depth) if shift]
    if not shift and family.layers != NATIVE_LAYERS:
        moved = [_renaming(f"{family.layers}.", f"{NATIVE_LAYERS}.")]
    inside = [_renaming(f".{old}", f".{new[0]}", anchor="") for old, new in family.in_layer.items() if len(new) == 1 and old != new[0]]
    # Thirds if queries, keys and values have the same size, else the number of rows of each of the model's matrices.
    rows = Split if "num_key_value_heads" in family.required else Chunk
    split = [WeightConverter(re.escape(old), list(new), operations=[rows(dim=0)]) for old, new in family.in_layer.items() if len(new) > 1]
    unit = [WeightConverter(name, name, operations=[UnitRows()]) for name in family.unit_rows if unit_rows]
    return [*outside, *after, *moved, *inside, *split, *unit]


def _renaming(old: str, new: str, anchor: str = "^") -> WeightRenaming:
    return WeightRenaming(anchor + re.escape(old), anchor + re.escape(new))


class UnitRows(ConversionOps):
    """Rows divided by their Euclidean norms, as Baichuan2's `NormHead` does at each use; in float32, rounded at the end.

    It doesn't have an inverse: the norms are lost, but the function doesn't depend on them.
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
    """A conversion that doesn't change anything."""

    def convert(self, input_dict: dict[str, Any], **ignored: Any) -> dict[str, Any]:
        """The same."""
        return input_dict

    @property
    def reverse_op(self) -> ConversionOps:
        """Itself."""
        return self


def unit_rows(weight: torch.Tensor) -> torch.Tensor:
    """The matrix [rows, channels] with every row of length 1, in the same dtype."""
    result = torch.empty_like(weight)
    for start in range(0, weight.shape[0], _ROWS):
        result[start : start + _ROWS] = functional.normalize(weight[start : start + _ROWS].float())
    return result


def has_unit_rows(weight: torch.Tensor) -> bool:
    """Whether each row of a matrix [rows, channels] has length 1, up to rounding of its dtype, or is zero."""
    lengths = weight.detach().float().norm(dim=-1)
    return bool((((lengths - 1).abs() < _TOLERANCE.get(weight.dtype, 1e-2)) | (lengths == 0)).all())


def original_config(config: Any) -> dict[str, Any] | None:
    """The original config.json of a native configuration; None if the checkpoint was native."""
    raw: dict[str, Any] | None = getattr(config, ORIGINAL, None)
    return config.to_dict() if raw is None and getattr(config, "is_original", False) else raw


def family_of_model(model: Any) -> Family | None:
    """The family a model was loaded from; None if its checkpoint had the native layout."""
    raw = original_config(model.config)
    return None if raw is None else family_of(raw, path=str(model.config._name_or_path))


@contextmanager
def original_names(model: Any) -> Iterator[None]:
    """A context in which `model.save_pretrained` writes the weights with their names in the original layout."""
    family = family_of_model(model)
    own = model._weight_conversions if hasattr(model, "_weight_conversions") else None
    model._weight_conversions = [] if family is None else conversions(family, depth=model.config.num_hidden_layers)
    try:
        yield
    finally:
        model._weight_conversions = own


def check_original_layout(model: Any, *, key: str) -> None:
    """Refuse a model that can't be written in an original layout.

    Args:
        key: the configuration key for the message.

    Raises:
        ConfigError: its checkpoint had the native layout, or the original code would change its head.
    """
    family = family_of_model(model)
    if family is None:
        found = f"'{model.config._name_or_path}' has the native layout, and doesn't have another"
        raise ConfigError(Problem(key, found, "Allowed: native"))
    if family.unit_rows and not has_unit_rows(model.get_output_embeddings().weight):
        found = f"{family.name}'s own code divides each row of the head by its length, but this head was trained without that"
        raise ConfigError(Problem(key, found, "Allowed: native"))


def copy_original_files(model: Any, directory: Path) -> bool:
    """Copy the tokenizer and Python code of an original checkpoint on this machine, for old programs; whether it has a tokenizer."""
    source = resolve_path(str(model.config._name_or_path))
    if not isinstance(source, Path) or not source.is_dir():
        return False
    for file in {*source.glob("*.py"), *tokenizer_files(source)}:
        shutil.copy(file, directory)
    return has_tokenizer(source)


def write_original_config(model: Any, directory: Path) -> None:
    """Replace a native config.json by the original one, with the dtype of the written weights."""
    raw = dict(original_config(model.config) or {})
    raw.pop("dtype", None)
    raw["torch_dtype"] = str(model.dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def native_targets(model: Any, targets: Any, *, key: str) -> Any:
    """Target modules with original names replaced by native ones; logs the replacements.

    Args:
        model: a PreTrainedModel of a native class, from any checkpoint.
        targets: names or ends of names, as in peft. A regular expression, or a name that the model has, is unchanged.
        key: the configuration key, for the log.
    """
    if isinstance(targets, str):
        return native_targets(model, [targets], key=key) if _original(model, targets) else targets
    if targets is None:
        return None
    result, said = [], []
    for target in targets:
        native = _original(model, target)
        result += native or [target]
        if native:
            said.append(f"{target} is {', '.join(native)}")
    if said:
        log.info("%s: in %s, %s.", key, type(model).__name__, "; ".join(said))
    return list(dict.fromkeys(result))


def native_adapter(model: Any, config: Any, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An adapter's weights for the native class. Those of a split matrix become those of its parts, exactly.

    With W = [Q; K; V] (rows), an adapter adds B A to W, that is B_q A to Q, B_k A to K, B_v A to V: A is copied, B's rows are distributed.

    Args:
        model: a PreTrainedModel of a native class.
        config: the adapter's peft config; its target modules and the keys of its patterns are replaced in place.
        state: name -> tensor, as in the adapter's file.

    Returns:
        The same weights if the names are native already, or don't belong to one of the class's families.
    """
    family = next((f for f in families_of_class(model.config.model_type) if _is_of(f, model, state)), None)
    if family is None:
        return dict(state)
    modules = dict(model.named_modules())
    result: dict[str, torch.Tensor] = {}
    tuned: set[str] = set()
    for name, tensor in state.items():
        module, rest = _parted(name)
        native = family.native_names(module, depth=model.config.num_hidden_layers)
        if len(native) < 2:
            shares: Sequence[torch.Tensor] = [tensor] * len(native)
        elif rest.startswith(_COPIED):
            shares = [tensor.clone() for _ in native]
        else:  # row i belongs to output i of the matrix
            shares = [rows.contiguous() for rows in torch.split(tensor, [modules[part].out_features for part in native])]
        for part, rows in zip(native, shares, strict=True):
            result[f"{_PREFIX}{part}.{rest}"] = rows
            tuned |= {part} if rest.startswith("lora_") else set()
    _rename_in(config, model, tuned)
    text = "the adapter has the names of %s; it was converted to those of %s, without a change of its function."
    log.info(text, family.name, type(model).__name__)
    return result


def _original(model: Any, target: str) -> list[str]:
    """The native names for an original name; empty if the model has the name itself."""
    if any(name == target or name.endswith(f".{target}") for name, _ in model.named_modules()):
        return []
    for family in families_of_class(model.config.model_type):
        tables = [family.in_layer, *({old: (new,) for old, new in t.items()} for t in (family.outside, family.after_layers))]
        meant = [new for table in tables for old, new in table.items() if old == target or old.endswith(f".{target}")]
        if meant:
            return [part.rpartition(".")[2] for parts in meant for part in parts]
    return []


def _is_of(family: Family, model: Any, state: Mapping[str, Any]) -> bool:
    """Whether a family has every name of an adapter's file, and the model doesn't."""
    modules = {name for name, _ in model.named_modules()}
    names = {_parted(name)[0] for name in state}
    if names <= modules:
        return False
    native = [family.native_names(name, depth=model.config.num_hidden_layers) for name in names]
    return all(parts and set(parts) <= modules for parts in native)


def _parted(name: str) -> tuple[str, str]:
    """`base_model.model.<module>.lora_A.weight` -> (module, `lora_A.weight`)."""
    module, *rest = _TUNED.split(name.removeprefix(_PREFIX), maxsplit=1)
    return module, "".join(rest)


def _rename_in(config: Any, model: Any, tuned: set[str]) -> None:
    """Replace original names in an adapter's configuration by native ones.

    Args:
        tuned: native names of the modules that have adapters.
    """
    if isinstance(config.target_modules, str) or getattr(config, "layers_to_transform", None) is not None:
        # A pattern for names or numbers that don't exist here; the file's list of modules is equivalent.
        config.target_modules, config.layers_to_transform, config.layers_pattern = tuned, None, None
    for field in ("target_modules", "exclude_modules", "modules_to_save"):
        value = getattr(config, field, None)
        if isinstance(value, (list, set, tuple)):
            setattr(config, field, type(value)(native_targets(model, sorted(value), key=f"adapter_config.json: {field}")))
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, field, None) or {}
        setattr(config, field, {part: number for name, number in patterns.items() for part in (_original(model, name) or [name])})

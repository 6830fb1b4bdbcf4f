"""LoRA with original names: target modules that users know, and adapters that were trained with the original code."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmmod.models.families.family import Family
from llmmod.models.families.registry import families_of_class

log = logging.getLogger(__name__)

_PREFIX = "base_model.model."  # peft's prefix of module names in an adapter's file
_TUNED = re.compile(r"\.(?=lora_|weight$|bias$|base_layer\.|modules_to_save\.)")  # where the module's name ends
_COPIED = ("lora_A", "lora_embedding_A")  # these take the input, which is the same for all parts of a split matrix


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
    depth = model.config.num_hidden_layers
    result: dict[str, torch.Tensor] = {}
    tuned: set[str] = set()
    for name, tensor in state.items():
        module, rest = _parted(name)
        native = family.native_names(module, depth=depth)
        for part, rows in zip(native, _shared_out(tensor, rest, [modules[part] for part in native]), strict=True):
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


def _shared_out(tensor: torch.Tensor, rest: str, parts: Sequence[Any]) -> Sequence[torch.Tensor]:
    """A tensor for each part of a matrix; row i of the first dimension belongs to output i of the matrix."""
    if len(parts) == 1:
        return [tensor]
    if rest.startswith(_COPIED):
        return [tensor.clone() for _ in parts]
    return [rows.contiguous() for rows in torch.split(tensor, [part.out_features for part in parts])]


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

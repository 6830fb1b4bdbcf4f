"""`key={a: 1}` and `+key.a=1` where the key is null: OmegaConf 2.3.1 fails on them, since it merges into what isn't there.

Many fields of the trainers' and peft's classes are mappings that are null until they are given, e.g. `finetune.eva_config`. A file sets
them without trouble. `steps.rm.model.from_step=sft` goes the same way, since it says all there is to say of that model. May go when
OmegaConf merges a mapping into a null one.
"""

from __future__ import annotations

from typing import Any

import omegaconf
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import is_structured_config

_apply = ConfigLoaderImpl._apply_overrides_to_config


def patch_null_mappings() -> None:
    """Let Hydra apply such overrides; a second call changes nothing."""
    if omegaconf.__version__ == "2.3.1":
        ConfigLoaderImpl._apply_overrides_to_config = staticmethod(_apply_to_null_too)  # type: ignore[method-assign]


def _apply_to_null_too(overrides: list[Override], cfg: DictConfig) -> None:
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if isinstance(value, dict) and not override.is_delete() and _is_null_mapping(key, cfg):
            _fill(cfg, key, value)
            continue
        above = key.rpartition(".")[0]
        if key.endswith(".model.from_step") and not override.is_delete() and _is_null_mapping(above, cfg):
            _fill(cfg, above, {"from_step": value})
            continue
        if (override.is_add() or override.is_force_add()) and _is_null_mapping(above, cfg, typed=False):
            OmegaConf.update(cfg, above, {}, merge=False)
        _apply([override], cfg)


def _fill(cfg: DictConfig, key: str, value: dict[Any, Any]) -> None:
    """Put a mapping where there is null, typed where the place is."""
    holder, _, name = key.rpartition(".")
    parent: Any = OmegaConf.select(cfg, holder) if holder else cfg
    schema = parent._get_node(name)._metadata.ref_type
    if is_structured_config(schema):
        OmegaConf.update(cfg, key, OmegaConf.structured(schema), merge=False)
    OmegaConf.update(cfg, key, value, merge=is_structured_config(schema))


def _is_null_mapping(key: str, cfg: DictConfig, *, typed: bool = True) -> bool:
    """Whether a key that may hold a mapping is null; `typed`: one with the keys of a dataclass too."""
    holder, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, holder, throw_on_missing=False) if holder else cfg
    node = parent._get_node(name, validate_access=False) if isinstance(parent, DictConfig) and not parent._is_none() else None
    return isinstance(node, DictConfig) and node._is_none() and (typed or not is_structured_config(node._metadata.ref_type))

"""What Hydra gets before it composes: every schema in its ConfigStore, and patches for speed and for mappings that are null.

The schemas are in the group `schema`, from which each YAML option starts. A schema's module is imported, and its node created, when a
configuration needs it.

The patches are for Hydra 1.3.8 and OmegaConf 2.3.1; other versions run without them. Composing and listing options repeat much work. Each
patch returns the same as the original; tests/config/test_hydra_patches.py compares them. CPU time with this project's configuration:

- `CachingConfigRepository` copies the repository deeply, and with it the ConfigStore, a singleton that does not change meanwhile:
  `--help` 2.6 s -> 0.60 s (with schemas created on demand), composing 0.03 s less.
- `get_group_options` creates such a repository for each group that `--help` lists, most of them three times: 0.07 s less.
- `_create_interpolation_map` creates an OmegaConf tree of all choices for each file with a defaults list, although only an interpolation
  in the list needs it: composing 0.03 s less.
- `_re_parent` walks the whole tree after each of the 35 merges, with a subclass check at each step: composing 0.037 s less.
- `get_yaml_loader` creates PyYAML's Python loader for each file; libyaml's reads the same: composing 0.014 s less.
- `Metadata` doesn't have `__deepcopy__`, so each copied node uses `copy._reconstruct`: composing 0.01 s less.
- A dataclass's node sets the node of each field with `__setitem__`, which copies, validates and wraps it again: 0.04 s less.
- `load_config` reads the same files and schemas for each job of a sweep: from a process's third composition on 0.036 of 0.115 s less.
- `get_help` writes the whole configuration as YAML, which our template doesn't show: `--help` 0.012 s less.

`key={a: 1}` and `+key.a=1` fail in OmegaConf 2.3.1 if the key is null. Many fields of the trainers' and peft's classes are mappings that
are null by default, e.g. `finetune.eva_config`; a file can set them. `steps.rm.model.from_step=sft` is set in the same way, since such a
model doesn't have other keys.
"""

from __future__ import annotations

import importlib
import math
import operator
import os
import pickle
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Hashable
from contextlib import suppress
from copy import deepcopy
from functools import cache, reduce
from string import Template
from typing import Any

import hydra
import omegaconf
import yaml
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf import _utils as omegaconf_internals
from omegaconf._utils import get_structured_config_data, get_type_of, is_structured_config
from omegaconf.base import Box, Metadata

from llmmod.code_arguments import trusted_by_environment
from llmmod.distributed import started

# group/name -> the dataclass
SCHEMAS: dict[str, str] = {
    "schema/root": "llmmod.config.schema.steps.Root",
    "schema/model": "llmmod.config.schema.model.ModelConf",
    "schema/dataset": "llmmod.config.schema.data.DatasetConf",
    "schema/render": "llmmod.config.schema.data.RenderConf",
    "schema/generation": "llmmod.config.schema.generation.GenerationConf",
    "schema/distributed": "llmmod.config.schema.distributed.DistributedConf",
    "schema/finetune/full": "llmmod.config.schema.model.FullConf",
    "schema/finetune/freeze": "llmmod.config.schema.model.FreezeConf",
    "schema/finetune/lora": "llmmod.config.schema.model.LoraConf",
    "schema/training/pt": "llmmod.config.schema.training.PtConf",
    "schema/training/sft": "llmmod.config.schema.training.SftConf",
    "schema/training/rm": "llmmod.config.schema.training.RmConf",
    "schema/training/dpo": "llmmod.config.schema.training.DpoConf",
    "schema/training/kto": "llmmod.config.schema.training.KtoConf",
    "schema/training/grpo": "llmmod.config.schema.training.GrpoConf",
    "schema/training/ppo": "llmmod.config.schema.training.PpoConf",
    "schema/step/chat": "llmmod.config.schema.steps.ChatConf",
    "schema/step/compare": "llmmod.config.schema.steps.CompareConf",
    "schema/step/evaluate": "llmmod.config.schema.steps.EvaluateConf",
    "schema/step/export": "llmmod.config.schema.steps.ExportConf",
    "schema/step/plan": "llmmod.config.schema.steps.PlanConf",
    "schema/step/predict": "llmmod.config.schema.steps.PredictConf",
    "schema/step/preview": "llmmod.config.schema.steps.PreviewConf",
    "schema/step/train": "llmmod.config.schema.steps.TrainConf",
}
# The originals of what is replaced.
_list_groups = ConfigLoaderImpl.list_groups
_interpolation_map = defaults_list._create_interpolation_map
_group_options = ConfigLoaderImpl.get_group_options
_re_parent = Box._re_parent
_pure_yaml_loader = omegaconf_internals.get_yaml_loader
_set_value = DictConfig._set_value_impl
_get_help = Hydra.get_help
_apply = ConfigLoaderImpl._apply_overrides_to_config
_load_config = ConfigRepository.load_config
# What this process has read, with the store's node, so that no other gets its id; and a pickled copy of what it has read twice.
_READ: dict[Hashable, tuple[Any, bytes | None]] = {}


def register_schemas() -> None:
    """Store each schema; a second call doesn't do anything."""
    OmegaConf.register_new_resolver("started", started, replace=True)
    OmegaConf.register_new_resolver("product", _product, replace=True)
    patch_hydra()
    patch_null_mappings()
    ConfigLoaderImpl.list_groups = _groups_to_choose_from  # type: ignore[method-assign,assignment]
    for path in SCHEMAS:
        *groups, name = path.split("/")
        place = ConfigStore.instance().repo
        for group in groups:
            place = place.setdefault(group, {})
        if f"{name}.yaml" not in place:
            node: Any = _Schema(path)
            place[f"{name}.yaml"] = ConfigNode(name=f"{name}.yaml", node=node, group="/".join(groups), package=None, provider="llmmod")


def _groups_to_choose_from(loader: ConfigLoaderImpl, parent_name: str) -> list[str]:
    """The groups that `--help` lists (the only call in Hydra 1.3.8), without the schemas, which users don't choose."""
    return [name for name in _list_groups(loader, parent_name) if parent_name or name != "schema"]


def _product(*numbers: float) -> float:
    """The product of numbers, to 12 digits: a tenth of 0.003 is 0.0003."""
    return float(f"{math.prod(numbers):.12g}")


def schema_class(path: str) -> type | None:
    """The dataclass stored under a path such as `schema/finetune/lora`, or None."""
    if path not in SCHEMAS:
        return None
    module, _, name = SCHEMAS[path].rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


class _Schema:
    """A placeholder for a schema's node until the store returns a deep copy of it (hydra.core.config_store, 1.3.8)."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __deepcopy__(self, memo: dict[int, Any]) -> DictConfig:
        schema = schema_class(self._path)
        assert schema is not None
        return OmegaConf.structured(schema)  # type: ignore[no-any-return]


def patch_hydra() -> None:
    """Apply the patches; a second call doesn't do anything."""
    if (hydra.__version__, omegaconf.__version__) != ("1.3.8", "2.3.1"):
        return
    ConfigStore.instance().__dict__["__deepcopy__"] = _the_store
    defaults_list._create_interpolation_map = _interpolation_map_if_needed  # type: ignore[assignment]
    ConfigLoaderImpl.get_group_options = _group_options_of_repository  # type: ignore[method-assign, assignment]
    Box._re_parent = _children_know_parent  # type: ignore[method-assign, assignment]
    if yaml.__with_libyaml__:
        omegaconf_internals.get_yaml_loader = _yaml_loader
    DictConfig._set_value_impl = _set_value_or_schema  # type: ignore[method-assign, assignment]
    Hydra.get_help = _help_without_unshown_values  # type: ignore[method-assign, assignment]
    ConfigRepository.load_config = _load_config_or_copy  # type: ignore[method-assign, assignment]
    setattr(Metadata, "__deepcopy__", _copy_metadata)  # noqa: B010 (a hook of Python that the class leaves out)


def _the_store(memo: dict[int, Any]) -> ConfigStore:
    """The singleton itself instead of a copy; `ConfigStore.load` still copies each node that it returns."""
    return ConfigStore.instance()


def _interpolation_map_if_needed(overrides: Any, defaults: list[Any], self_added: bool) -> DictConfig:
    """Hydra's map if an entry of the defaults list has an interpolation, else an empty one, which isn't read."""
    if any(default.is_interpolation() for default in defaults):
        return _interpolation_map(overrides, defaults, self_added)
    return DictConfig({})


def _group_options_of_repository(
    loader: ConfigLoaderImpl,
    group_name: str,
    results_filter: ObjectType | None = ObjectType.CONFIG,
    config_name: str | None = None,
    overrides: list[str] | None = None,
) -> list[str]:
    """A group's options from the loader's own repository, if another search path isn't requested."""
    if config_name is None and not overrides:
        options: dict[Any, list[str]] = loader.repository.__dict__.setdefault("_options", {})
        if (group_name, results_filter) not in options:
            options[group_name, results_filter] = loader.repository.get_group_options(group_name, results_filter)
        return list(options[group_name, results_filter])
    return _group_options(loader, group_name, results_filter, config_name, overrides)


@cache
def _yaml_loader() -> type:
    """OmegaConf's loader, with its own rules for numbers and repeated keys, on libyaml's parser."""
    return type("OmegaConfLoader", (yaml.CSafeLoader, _pure_yaml_loader()), {})


def _copy_metadata(metadata: Metadata, memo: dict[int, Any]) -> Metadata:
    """A copy of a node's metadata with its own flags and resolved values; the rest are types, which a deep copy shares too."""
    copied: Metadata = object.__new__(type(metadata))
    copied.__dict__.update(metadata.__dict__)
    copied.flags = None if metadata.flags is None else dict(metadata.flags)
    copied.resolver_cache = deepcopy(metadata.resolver_cache, memo) if metadata.resolver_cache else defaultdict(dict)
    return copied


def _children_know_parent(box: Box) -> None:
    """Set the parent of every node below, and clear the flags inherited from another."""
    content = box.__dict__["_content"]
    children = content.values() if isinstance(content, dict) else content if isinstance(content, list) else [content]
    for child in children:
        if "_parent" in getattr(child, "__dict__", ()):  # a node: `isinstance` of an abstract class takes twice as long
            child.__dict__["_parent"] = box
            child.__dict__["_flags_cache"] = None
            if "_content" in child.__dict__:
                _children_know_parent(child)


def _set_value_or_schema(node: DictConfig, value: Any, flags: dict[str, bool] | None = None) -> None:
    """Set a node to a dataclass's fields without copying them; any other value as in OmegaConf."""
    if not is_structured_config(value) or node._metadata.element_type is not Any or node._metadata.key_type is not Any:
        _set_value(node, value, flags)
        return
    node._validate_set(key=None, value=value)
    node._metadata.object_type = None
    fields = get_structured_config_data(value, allow_objects=node._get_flag("allow_objects"))
    for child in fields.values():
        child._set_parent(node)
    node.__dict__["_content"] = fields
    node.__dict__["_flags_cache"] = None
    node._metadata.object_type = get_type_of(value)


def _help_without_unshown_values(hydra: Hydra, help_cfg: DictConfig, cfg: DictConfig, args_parser: ArgumentParser, resolve: bool) -> str:
    """The text of `--help`; the configuration is only written if the template shows it."""
    shown = "CONFIG" in Template(help_cfg.template).get_identifiers()
    return _get_help(hydra, help_cfg, cfg if shown else DictConfig({}), args_parser, resolve)


def _load_config_or_copy(repository: ConfigRepository, config_path: str) -> Any:
    """A configuration, or None. From the third time on a copy of what was read before, unless its file or node has changed."""
    source = next((source for source in repository.get_sources() if source.is_config(config_path)), None)
    if source is None:
        return None
    name, node, changed = f"{config_path.removesuffix('.yaml')}.yaml", None, 0
    if source.scheme() == "file":
        changed = os.stat(os.path.join(source.path, name)).st_mtime_ns
    elif source.scheme() == "structured":
        node = reduce(operator.getitem, name.split("/"), ConfigStore.instance().repo)
    key = source.path, source.provider, name, changed, id(node), trusted_by_environment()  # the last is a default of schemas
    _, copy = _READ.get(key, (None, None))
    if copy is not None:
        return pickle.loads(copy)
    found = _load_config(repository, config_path)
    if key in _READ:
        with suppress(pickle.PicklingError, AttributeError, TypeError):  # a user's schema from inside a function
            copy = pickle.dumps(found, pickle.HIGHEST_PROTOCOL)
    _READ[key] = node, copy
    return found


def patch_null_mappings() -> None:
    """Make Hydra apply overrides of null mappings; a second call doesn't do anything."""
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
    """Replace null by a mapping, typed if the field is."""
    holder, _, name = key.rpartition(".")
    parent: Any = OmegaConf.select(cfg, holder) if holder else cfg
    schema = parent._get_node(name)._metadata.ref_type
    if is_structured_config(schema):
        OmegaConf.update(cfg, key, OmegaConf.structured(schema), merge=False)
    OmegaConf.update(cfg, key, value, merge=is_structured_config(schema))


def _is_null_mapping(key: str, cfg: DictConfig, *, typed: bool = True) -> bool:
    """Whether a key that may be a mapping is null; `typed`: including mappings with a dataclass's keys."""
    holder, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, holder, throw_on_missing=False) if holder else cfg
    node = parent._get_node(name, validate_access=False) if isinstance(parent, DictConfig) and not parent._is_none() else None
    return isinstance(node, DictConfig) and node._is_none() and (typed or not is_structured_config(node._metadata.ref_type))

"""Every schema in Hydra's ConfigStore, under the group `schema`, which each YAML option starts from.

Stored as names of classes: a schema's module is imported, and its node made, when a configuration asks for it.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from types import ModuleType
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import DictConfig, OmegaConf

from llmmod.ranks import started
from llmmod.schema import step, training
from llmmod.schema.fast_hydra import patch_hydra
from llmmod.schema.node import structured_node
from llmmod.schema.null_mappings import patch_null_mappings


def _modules(package: ModuleType) -> list[str]:
    """The names of a package's modules, each of which is a stage or a step."""
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


# group/name -> the dataclass
SCHEMAS: dict[str, str] = {
    "schema/root": "llmmod.schema.root.Root",
    "schema/model": "llmmod.schema.model.ModelConf",
    "schema/dataset": "llmmod.schema.data.DatasetConf",
    "schema/render": "llmmod.schema.data.RenderConf",
    "schema/generation": "llmmod.schema.generation.GenerationConf",
    "schema/finetune/full": "llmmod.schema.finetune.FullConf",
    "schema/finetune/freeze": "llmmod.schema.finetune.FreezeConf",
    "schema/finetune/lora": "llmmod.schema.finetune.LoraConf",
    **{f"schema/training/{name}": f"llmmod.schema.training.{name}.{name.capitalize()}Conf" for name in _modules(training)},
    **{f"schema/step/{name}": f"llmmod.schema.step.{name}.{name.capitalize()}Conf" for name in _modules(step)},
}


def register_schemas() -> None:
    """Store each schema; a second call changes nothing."""
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
        node: Any = _Schema(path)
        place[f"{name}.yaml"] = ConfigNode(name=f"{name}.yaml", node=node, group="/".join(groups), package=None, provider="llmmod")


_list_groups = ConfigLoaderImpl.list_groups


def _groups_to_choose_from(loader: ConfigLoaderImpl, parent_name: str) -> list[str]:
    """The groups that `--help` lists (Hydra 1.3.8 asks nowhere else): not the schemas, which no user chooses."""
    return [name for name in _list_groups(loader, parent_name) if parent_name or name != "schema"]


def _product(*numbers: float) -> float:
    """What numbers multiply to, to 12 digits: a tenth of 0.003 is 0.0003."""
    return float(f"{math.prod(numbers):.12g}")


def schema_class(path: str) -> type | None:
    """The dataclass stored under a path such as `schema/finetune/lora`; None where llmmod has none there."""
    if path not in SCHEMAS:
        return None
    module, _, name = SCHEMAS[path].rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


class _Schema:
    """Stands for a schema's node until the store hands it out, which it does by copying it deeply (hydra.core.config_store, 1.3.8)."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __deepcopy__(self, memo: dict[int, Any]) -> DictConfig:
        schema = schema_class(self._path)
        assert schema is not None
        return structured_node(schema)

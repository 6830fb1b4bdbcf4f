"""Every schema in Hydra's ConfigStore, in the group `schema`, from which each YAML option starts.

The store has names of classes: a schema's module is imported, and its node created, when a configuration needs it.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import DictConfig, OmegaConf

from llmmod.config.hydra_patches import patch_hydra, patch_null_mappings
from llmmod.distributed import started

# group/name -> the dataclass
SCHEMAS: dict[str, str] = {
    "schema/root": "llmmod.config.schema.steps.Root",
    "schema/model": "llmmod.config.schema.model.ModelConf",
    "schema/dataset": "llmmod.config.schema.data.DatasetConf",
    "schema/render": "llmmod.config.schema.data.RenderConf",
    "schema/generation": "llmmod.config.schema.generation.GenerationConf",
    "schema/distributed": "llmmod.config.schema.distributed.DistributedConf",
    "schema/finetune/full": "llmmod.config.schema.finetune.FullConf",
    "schema/finetune/freeze": "llmmod.config.schema.finetune.FreezeConf",
    "schema/finetune/lora": "llmmod.config.schema.finetune.LoraConf",
    "schema/training/pt": "llmmod.config.schema.training.PtConf",
    "schema/training/sft": "llmmod.config.schema.training.SftConf",
    "schema/training/rm": "llmmod.config.schema.training.RmConf",
    "schema/training/dpo": "llmmod.config.schema.training.DpoConf",
    "schema/training/kto": "llmmod.config.schema.training.KtoConf",
    "schema/training/grpo": "llmmod.config.schema.online_training.GrpoConf",
    "schema/training/ppo": "llmmod.config.schema.online_training.PpoConf",
    "schema/step/chat": "llmmod.config.schema.steps.ChatConf",
    "schema/step/compare": "llmmod.config.schema.steps.CompareConf",
    "schema/step/evaluate": "llmmod.config.schema.steps.EvaluateConf",
    "schema/step/export": "llmmod.config.schema.steps.ExportConf",
    "schema/step/plan": "llmmod.config.schema.steps.PlanConf",
    "schema/step/predict": "llmmod.config.schema.steps.PredictConf",
    "schema/step/preview": "llmmod.config.schema.steps.PreviewConf",
    "schema/step/train": "llmmod.config.schema.steps.TrainConf",
}
_list_groups = ConfigLoaderImpl.list_groups


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

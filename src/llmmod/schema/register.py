"""Every schema in Hydra's ConfigStore, under the group `schema`, which each YAML option starts from."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from llmmod.ranks import started
from llmmod.schema import data, finetune, generation, model, root, step, training


def register_schemas() -> None:
    """Store each schema; a second call changes nothing."""
    OmegaConf.register_new_resolver("started", started, replace=True)
    store = ConfigStore.instance()
    store.store(group="schema", name="root", node=root.Root)
    store.store(group="schema", name="model", node=model.ModelConf)
    store.store(group="schema", name="dataset", node=data.DatasetConf)
    store.store(group="schema", name="render", node=data.RenderConf)
    store.store(group="schema", name="generation", node=generation.GenerationConf)
    for name, node in _BY_GROUP["finetune"].items():
        store.store(group="schema/finetune", name=name, node=node)
    for name, node in _BY_GROUP["training"].items():
        store.store(group="schema/training", name=name, node=node)
    for name, node in _BY_GROUP["step"].items():
        store.store(group="schema/step", name=name, node=node)


_BY_GROUP: dict[str, dict[str, type]] = {
    "finetune": {"full": finetune.FullConf, "freeze": finetune.FreezeConf, "lora": finetune.LoraConf},
    "training": {"sft": training.SftConf},
    "step": {
        "train": step.TrainConf,
        "evaluate": step.EvaluateConf,
        "predict": step.PredictConf,
        "export": step.ExportConf,
        "chat": step.ChatConf,
        "preview": step.PreviewConf,
    },
}

"""`finetune.*`: what of the model is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llmmod.config.schema.base import TrainableDtype
from llmmod.config.schema.generated.lora import LoraConfig


@dataclass
class FinetuneConf:
    """What every way to fine-tune has."""

    name: str = MISSING  # the option's name, used in paths
    # float32: what is trained is held in float32 and saved in the checkpoint's type; checkpoint: it is held in that type too, which takes
    # less memory and is less exact
    trainable_dtype: TrainableDtype = TrainableDtype.float32
    upcast_layernorm: bool = False  # normalisation layers in float32
    upcast_head: bool = False  # output layer and logits in float32
    # Merged in order, all but the last, which is continued or used. On quantized weights they stay active beside it instead.
    adapters: list[str] = field(default_factory=list)
    resume_adapter: bool = False  # go on training the last of `adapters`, rather than merge it and start a new one
    learning_rate: float = 2e-5  # what suits this way of training: a stage's `training.learning_rate` is this unless it is set


@dataclass
class FullConf(FinetuneConf):
    """Every weight is trained."""

    _target_: str = "llmmod.models.adapters.setup.setup_full"


@dataclass
class FreezeConf(FinetuneConf):
    """Some layers are trained, the rest is frozen."""

    _target_: str = "llmmod.models.adapters.setup.setup_freeze"
    num_layers_trainable: int = 3  # n > 0: the last n layers; n < 0: the first |n|
    name_module_trainable: list[str] = field(default_factory=lambda: ["all"])  # modules inside a layer, e.g. mlp, self_attn; all
    extra_trainable: list[str] = field(default_factory=list)  # modules outside the layers, e.g. norm, lm_head, embed_tokens


@dataclass
class LoraConf(LoraConfig, FinetuneConf):
    """Low-rank adapters on frozen weights (Hu et al. 2021): every field of peft.LoraConfig."""

    _target_: str = "llmmod.models.adapters.setup.setup_lora"
    # What suits this way of training: a stage's `training.learning_rate` is this unless it is set. Adapters start from zero and take about
    # ten times the rate of full fine-tuning (Schulman et al. 2025, "LoRA Without Regret")
    learning_rate: float = 2e-4
    loraplus_lr_ratio: float | None = None  # LoRA+ (Hayou et al. 2024): matrices B learn so many times as fast as A; None: alike
    target_modules: Any = "${model.lora_targets}"  # the modules that get an adapter: their names, or all-linear

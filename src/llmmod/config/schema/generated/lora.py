"""`peft.LoraConfig` (peft 0.21.2) as a schema, with that class's own defaults.

Written by `python -m devtools.generate`, not by hand. 26 of 42 fields take just what the class takes, by their
annotation or with `CHOICES`; the rest are looser, and `ACCEPTED` says what the class itself takes.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(init=False, repr=False, eq=False)  # only extended, never made: without them it is defined four times as fast
class LoraConfig:
    """Every argument of `peft.LoraConfig`."""

    _target_: str = "peft.LoraConfig"
    # Task type
    task_type: str | None = None
    # Peft type
    peft_type: str | None = None
    # An auto mapping dict to help retrieve the base model class if needed
    auto_mapping: dict[str, Any] | None = None
    # PEFT version, leave empty to auto-fill
    peft_version: str | None = None
    # The name of the base model to use
    base_model_name_or_path: str | None = None
    # The specific base model version to use
    revision: str | None = None
    # Whether to use inference mode
    inference_mode: bool = False
    # Lora attention dimension (the "rank")
    r: int = 8
    # List of module names of the module names to replace with LoRA
    target_modules: Any = None
    # List of module names or regex expression of the module names to exclude from Lora
    exclude_modules: Any = None
    # The alpha parameter for Lora scaling
    lora_alpha: int = 8
    # The dropout probability for Lora layers
    lora_dropout: float = 0.0
    # Set this to True if the layer to replace stores weight like (fan_in, fan_out)
    fan_in_fan_out: bool = False
    # Bias type for Lora
    bias: str = "none"
    # When set to True, uses Rank-Stabilized LoRA which sets the adapter scaling factor to `lora_alpha/math.sqrt(r)`, since it was proven to
    # work better
    use_rslora: bool = False
    # List of modules apart from LoRA layers to be set as trainable and saved in the final checkpoint
    modules_to_save: list[str] | None = None
    # How to initialize the weights of the LoRA layers
    init_lora_weights: bool | str = True
    # The layer indexes to transform, is this argument is specified, PEFT will transform only the layers indexes that are specified inside
    # this list
    layers_to_transform: Any = None
    # The layer pattern name, used only if `layers_to_transform` is different to None and if the layer pattern is not in the common layers
    # pattern.This only works when target_modules is a list of str
    layers_pattern: Any = None
    # The mapping from layer names or regexp expression to ranks which are different from the default rank specified by `r`
    rank_pattern: dict[str, Any] | None = field(default_factory=dict)
    # The mapping from layer names or regexp expression to alphas which are different from the default alpha specified by `lora_alpha`
    alpha_pattern: dict[str, Any] | None = field(default_factory=dict)
    # The TransformerConfig from Megatron
    megatron_config: dict[str, Any] | None = None
    # The core module from Megatron, it is used to create LoRA's parallel linear layer
    megatron_core: str | None = "megatron.core"
    # Lets you specify which token indices to selectively fine-tune without requiring to re-train the whole embedding matrix using the
    # `peft.TrainableTokensModel` method
    trainable_token_indices: Any = None
    # The configuration of LoftQ
    loftq_config: dict[str, Any] = field(default_factory=dict)
    # The configuration of EVA
    eva_config: dict[str, Any] | None = None
    # The configuration of CorDA
    corda_config: dict[str, Any] | None = None
    # The configuration of LoRA-GA
    lora_ga_config: dict[str, Any] | None = None
    # Enable 'Weight-Decomposed Low-Rank Adaptation' (DoRA)
    use_dora: bool = False
    # Enable VeLoRA as a LoRA variant by providing a VeloraConfig
    velora_config: dict[str, Any] | None = None
    # If not None, enable 'Activated LoRA' (aLoRA), with alora_invocation_tokens being the tokenized invocation string for the adapter (must
    # be present in all model input strings)
    alora_invocation_tokens: list[int] | None = None
    # It is only implemented in GPTQ for now. Enable Quantization-Aware Low-Rank Adaptation (QALoRA).This technique combines
    # quantization-aware training with LoRA to improve performance for quantized models
    use_qalora: bool = False
    # Group size parameter for QALoRA pooling, controlling the dimension reduction factor
    qalora_group_size: int = 16
    # The configuration of Monteclora (Monte Carlo Low-Rank Adaptation)
    monteclora_config: dict[str, Any] | None = None
    # This enables using LoRA to effectively expand a transformer model to a larger size by repeating some layers
    layer_replication: list[list[int]] | None = None
    # Runtime configurations (which are not saved or restored)
    runtime_config: dict[str, Any] = field(default_factory=dict)
    # Whether to enable the bias term for the LoRA B parameter
    lora_bias: bool = False
    # List of parameter names or regex expression of the parameter names to replace with LoRA
    target_parameters: list[str] | None = None
    # Enable BD-LoRA (Block-Diagonal LoRA) by providing a BdLoraConfig
    use_bdlora: dict[str, Any] | None = None
    # The necessary config to apply arrow routing on the model
    arrow_config: dict[str, Any] | None = None
    # Enable KaSA (Knowledge-aware Singular-value Adaptation) as a LoRA variant by providing a `KasaConfig`
    kasa_config: dict[str, Any] | None = None
    # Whether to tie weights or not after peft initialization
    ensure_weight_tying: bool = False


# field -> the strings it allows, each item of a list too; a part in [brackets] stands for any text
CHOICES: dict[str, tuple[str, ...]] = {
    "task_type": ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"),
    "peft_type": (
        "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "LORA", "ADALORA", "ADAMSS", "BOFT", "ADAPTION_PROMPT",
        "IA3", "BEFT", "LILY", "LOHA", "LOKR", "OFT", "POLY", "LN_TUNING", "VERA", "FROD", "PVERA", "FOURIERFT", "GLORA", "XLORA", "HRA",
        "VBLORA", "UNILORA", "CPT", "MISS", "RANDLORA", "ROAD", "TRAINABLE_TOKENS", "HIRA", "SHIRA", "C3A", "WAVEFT", "OSF", "DELORA",
        "GRALORA", "CARTRIDGE", "TINYLORA", "PSOFT", "PEANUT", "SHADOW", "SUPERTUNING", "DEFT",
    ),
    "bias": ("none", "all", "lora_only"),
    "init_lora_weights": ("gaussian", "eva", "olora", "pissa", "pissa_niter_[number of iters]", "corda", "loftq", "orthogonal", "mica"),
}

# field -> the types that the class takes; a dotted path: a dict of that class's fields
ACCEPTED: dict[str, tuple[str, ...]] = {
    "target_modules": ("str", "list[str]", "None"),
    "exclude_modules": ("str", "list[str]", "None"),
    "layers_to_transform": ("int", "list[int]", "None"),
    "layers_pattern": ("str", "list[str]", "None"),
    "trainable_token_indices": ("dict[str, list[int]]", "list[int]", "None"),
    "loftq_config": ("peft.tuners.lora.config.LoftQConfig", "dict[str, Any]"),
    "eva_config": ("peft.tuners.lora.config.EvaConfig", "None"),
    "corda_config": ("peft.tuners.lora.config.CordaConfig", "None"),
    "lora_ga_config": ("peft.tuners.lora.config.LoraGAConfig", "None"),
    "velora_config": ("peft.tuners.lora.config.VeloraConfig", "dict[str, Any]", "None"),
    "monteclora_config": ("peft.tuners.lora.config.MontecloraConfig", "None"),
    "layer_replication": ("list[tuple[int, int]]", "None"),
    "runtime_config": ("peft.tuners.lora.config.LoraRuntimeConfig",),
    "use_bdlora": ("peft.tuners.lora.config.BdLoraConfig", "None"),
    "arrow_config": ("peft.tuners.lora.config.ArrowConfig", "None"),
    "kasa_config": ("peft.tuners.lora.config.KasaConfig", "None"),
}

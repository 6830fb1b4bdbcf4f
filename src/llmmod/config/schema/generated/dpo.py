"""`trl.DPOConfig` (trl 1.16.0, transformers 5.23.0) as a schema, with that class's own defaults.

Written by `python -m devtools.generate`, not by hand. 127 of 139 fields take just what the class takes, by their
annotation or with `CHOICES`; the rest are looser, and `ACCEPTED` says what the class itself takes.
What isn't here is as in `training_arguments`.
"""

from dataclasses import dataclass, field
from typing import Any

from llmmod.config.schema.generated.training_arguments import TrainingArguments


@dataclass(init=False, repr=False, eq=False)  # only extended, never made: without them it is defined four times as fast
class DPOConfig(TrainingArguments):
    """Every argument of `trl.DPOConfig`."""

    _target_: str = "trl.DPOConfig"
    # The initial learning rate for AdamW
    learning_rate: float = 1e-06
    # Additional parameters for the lr_scheduler, such as {'num_cycles': 1} for cosine with hard restarts
    lr_scheduler_kwargs: Any = None
    # Whether to use bf16 (mixed) precision instead of 32-bit
    bf16: bool | None = None
    # Enable gradient checkpointing to trade compute for memory
    gradient_checkpointing: bool = True
    # Enable Liger Kernel optimizations: transformers patches the model's layers with Liger's Triton kernels
    use_liger_kernel: bool = False
    # Log every X updates steps
    logging_steps: float = 10.0
    # Keyword arguments for `AutoModelForCausalLM.from_pretrained`, used when the `model` argument of the `DPOTrainer` is provided as a
    # string
    model_init_kwargs: Any = None
    # Whether to allow loading models and tokenizers that ship custom Python code from the Hub
    trust_remote_code: bool = False
    # Coefficient of the load-balancing auxiliary loss for Mixture-of-Experts (MoE) models, added to the training loss with this weight
    router_aux_loss_coef: float | None = None
    # Whether to disable dropout in the model and reference model
    disable_dropout: bool = True
    # Number of processes to use for processing the dataset
    dataset_num_proc: int | None = None
    # Maximum length of the tokenized sequence
    max_length: int | None = 1024
    # Truncation mode to use when the sequence exceeds `max_length`
    truncation_mode: str = "keep_start"
    # Whether to perform forward passes without padding by flattening all sequences in the batch into a single continuous sequence
    padding_free: bool = False
    # If set, the sequences will be padded to a multiple of this value
    pad_to_multiple_of: int | str | None = "auto"
    # Whether to precompute the reference model log probabilities for the entire training dataset before training
    precompute_ref_log_probs: bool = False
    # Batch size to use when precomputing reference model log probabilities
    precompute_ref_batch_size: int | None = None
    # Type of loss to use
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid"])
    # List of loss weights for multi-loss combinations
    loss_weights: list[float] | None = None
    # alpha parameter from the LD-DPO paper, which controls the weighting of the verbose token log-probabilities in responses
    ld_alpha: float | None = None
    # f-divergence regularizer between policy and reference (f-DPO paper)
    f_divergence_type: str = "reverse_kl"
    # alpha coefficient for the alpha-divergence u^-alpha regularizer, used only when `f_divergence_type='alpha_divergence'`
    f_alpha_divergence_coef: float = 0.5
    # Label smoothing parameter used in Robust DPO and EXO
    label_smoothing: float = 0.0
    # Parameter controlling the deviation from the reference model
    beta: float = 0.1
    # Whether to apply WPO-style weighting to preference pairs using the policy's length-normalized sequence probabilities
    use_weighting: bool = False
    # tau/temperature parameter from the DiscoPOP paper, which controls the shape of the log-ratio modulated loss when using
    # `loss_type='discopop'`
    discopop_tau: float = 0.05
    # Whether to offload the activations to the CPU
    activation_offloading: bool = False
    # Whether to synchronize the reference model with the active model every `ref_model_sync_steps` steps, using the `ref_model_mixup_alpha`
    # parameter
    sync_ref_model: bool = False
    # alpha parameter from the TR-DPO paper, which controls the mix between the current policy and the previous reference policy during
    # updates
    ref_model_mixup_alpha: float = 0.6
    # tau parameter from the TR-DPO paper, which determines how frequently the current policy is synchronized with the reference policy
    ref_model_sync_steps: int = 512
    # Deprecated. Set `tokenizer.pad_token` directly and pass it as `processing_class` to the trainer instead
    pad_token: str | None = None


# field -> the strings it allows, each item of a list too; a part in [brackets] stands for any text
CHOICES: dict[str, tuple[str, ...]] = {
    "truncation_mode": ("keep_end", "keep_start"),
}

# field -> the types that the class takes; a dotted path: a dict of that class's fields
ACCEPTED: dict[str, tuple[str, ...]] = {
    "lr_scheduler_kwargs": ("str", "dict[str, Any]", "None"),
    "model_init_kwargs": ("str", "dict[str, Any]", "None"),
}

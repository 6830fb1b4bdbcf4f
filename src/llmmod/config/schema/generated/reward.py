"""`trl.RewardConfig` (trl 1.16.0, transformers 5.23.0) as a schema, with that class's own defaults.

Written by `python -m devtools.generate`, not by hand. 113 of 125 fields take just what the class takes, by their
annotation or with `CHOICES`; the rest are looser, and `ACCEPTED` says what the class itself takes.
What isn't here is as in `training_arguments`.
"""

from dataclasses import dataclass, field
from typing import Any

from llmmod.config.schema.generated.training_arguments import TrainingArguments


@dataclass(init=False, repr=False, eq=False)  # only extended, never made: without them it is defined four times as fast
class RewardConfig(TrainingArguments):
    """Every argument of `trl.RewardConfig`."""

    _target_: str = "trl.RewardConfig"
    # The initial learning rate for AdamW
    learning_rate: float = 0.0001
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
    # Keyword arguments for `AutoModelForSequenceClassification.from_pretrained`, used when the `model` argument of the `RewardTrainer` is
    # provided as a string
    model_init_kwargs: Any = None
    # Whether to allow loading models and tokenizers that ship custom Python code from the Hub
    trust_remote_code: bool = False
    # If specified, sets the model's chat template
    chat_template_path: str | None = None
    # Whether to disable dropout in the model
    disable_dropout: bool = True
    # Number of processes to use for processing the dataset
    dataset_num_proc: int | None = None
    # Token used to indicate the end of a turn or sequence
    eos_token: str | None = None
    # Maximum length of the tokenized sequence
    max_length: int | None = 1024
    # If set, the sequences will be padded to a multiple of this value
    pad_to_multiple_of: int | str | None = "auto"
    # Coefficient to incentivize the reward model to output mean-zero rewards (proposed by this paper, Eq. 2)
    center_rewards_coefficient: float | None = None
    # Whether to offload the activations to the CPU
    activation_offloading: bool = False
    # Deprecated. Set `tokenizer.pad_token` directly and pass it as `processing_class` to the trainer instead
    pad_token: str | None = None


# field -> the strings it allows, each item of a list too; a part in [brackets] stands for any text
CHOICES: dict[str, tuple[str, ...]] = {}

# field -> the types that the class takes; a dotted path: a dict of that class's fields
ACCEPTED: dict[str, tuple[str, ...]] = {
    "lr_scheduler_kwargs": ("str", "dict[str, Any]", "None"),
    "model_init_kwargs": ("str", "dict[str, Any]", "None"),
}

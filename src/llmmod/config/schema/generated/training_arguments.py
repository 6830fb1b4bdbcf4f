"""`transformers.TrainingArguments` (transformers 5.23.0) as a schema, with that class's own defaults.

Written by `python -m devtools.generate`, not by hand. 103 of 114 fields take just what the class takes, by their
annotation or with `CHOICES`; the rest are looser, and `ACCEPTED` says what the class itself takes.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(init=False, repr=False, eq=False)  # only extended, never made: without them it is defined four times as fast
class TrainingArguments:
    """Every argument of `transformers.TrainingArguments`."""

    _target_: str = "transformers.TrainingArguments"
    # The output directory where the model predictions and checkpoints will be written
    output_dir: str | None = None
    # The batch size per device for training
    per_device_train_batch_size: int = 8
    # Total number of training epochs to perform
    num_train_epochs: float = 3.0
    # Overrides `num_train_epochs`. If set to a positive number, the total number of training steps to perform
    max_steps: int = -1
    # The initial learning rate for the optimizer
    learning_rate: float = 5e-05
    # The learning rate scheduler type to use
    lr_scheduler_type: str = "linear"
    # The extra arguments for the lr_scheduler
    lr_scheduler_kwargs: Any = None
    # Number of steps for a linear warmup from 0 to `learning_rate`
    warmup_steps: float = 0.0
    # The optimizer to use
    optim: str = "adamw_torch_fused"
    # Optional arguments supplied to optimizers such as AnyPrecisionAdamW, AdEMAMix, and GaLore
    optim_args: str | None = None
    # Weight decay coefficient applied by the optimizer
    weight_decay: float = 0.0
    # The exponential decay rate for the first moment estimates (momentum) in Adam-based optimizers
    adam_beta1: float = 0.9
    # The exponential decay rate for the second moment estimates (variance) in Adam-based optimizers
    adam_beta2: float = 0.999
    # Epsilon value for numerical stability in Adam-based optimizers
    adam_epsilon: float = 1e-08
    # The target modules to optimize
    optim_target_modules: Any = None
    # Number of update steps to accumulate gradients before performing a backward/update pass
    gradient_accumulation_steps: int = 1
    # Whether or not to average tokens across devices
    average_tokens_across_devices: bool = True
    # Maximum gradient norm for gradient clipping
    max_grad_norm: float = 1.0
    # Label smoothing factor to prevent overconfidence
    label_smoothing_factor: float = 0.0
    # Enable bfloat16 (BF16) mixed precision training
    bf16: bool = False
    # Enable float16 (FP16) mixed precision training
    fp16: bool = False
    # Use full BF16 precision for evaluation (not just mixed precision)
    bf16_full_eval: bool = False
    # Use full FP16 precision for evaluation (not just mixed precision)
    fp16_full_eval: bool = False
    # Enable TF32 mode on Ampere and newer GPUs
    tf32: bool | None = None
    # Enable activation checkpointing to trade compute for memory
    activation_checkpointing: bool | None = None
    # Keyword arguments passed to `activation_checkpointing_enable()`
    activation_checkpointing_kwargs: Any = None
    # Deprecated alias of `activation_checkpointing`, will be removed in v6
    gradient_checkpointing: bool | None = None
    # Deprecated alias of `activation_checkpointing_kwargs`, will be removed in v6
    gradient_checkpointing_kwargs: Any = None
    # Compile the model using `torch.compile()` for faster training
    torch_compile: bool = False
    # Backend for `torch.compile()`. If set, automatically enables `torch_compile`
    torch_compile_backend: str | None = None
    # Compilation mode for `torch.compile()`
    torch_compile_mode: str | None = None
    # Enable Liger Kernel optimizations
    use_liger_kernel: bool = False
    # Configuration for Liger Kernel
    liger_kernel_config: dict[str, bool] | None = None
    # Whether or not to use cache for the model For training, this is usually not needed apart from some PEFT methods that uses
    # `past_key_values`
    use_cache: bool = False
    # If not None, activates NEFTune noise embeddings
    neftune_noise_alpha: float | None = None
    # Number of steps to wait before calling `torch.<device>.empty_cache()`
    torch_empty_cache_steps: int | None = None
    # Whether to find a training batch size that will fit into memory automatically through exponential decay, avoiding CUDA Out-of-Memory
    # errors
    auto_find_batch_size: bool = False
    # The logging strategy to adopt during training
    logging_strategy: str = "steps"
    # Log every X updates steps
    logging_steps: float = 500.0
    # Whether to log the first `global_step` or not
    logging_first_step: bool = False
    # When doing a multinode distributed training, whether to log once per node or just once on the main node
    log_on_each_node: bool = True
    # Filter out NaN and Inf training and evaluation losses when logging
    logging_nan_inf_filter: bool = True
    # Whether to track the number of input tokens seen
    include_num_input_tokens_seen: bool | str = "no"
    # Logging level for the main process
    log_level: str = "passive"
    # Logging level for replica processes in distributed training
    log_level_replica: str = "warning"
    # Disable tqdm progress bars
    disable_tqdm: bool | None = None
    # The list of integrations to report the results and logs to
    report_to: Any = "none"
    # An optional descriptor for the run
    run_name: str | None = None
    # The name of the project to use for logging
    project: str = "huggingface"
    # Hugging Face Space id for live Gradio-based Trackio logging (read/write Bucket access)
    trackio_space_id: str | None = None
    # Optional HF Bucket id when using a Trackio Space; if unset, Trackio picks a default
    trackio_bucket_id: str | None = None
    # Static read-only Trackio Space over the Bucket (stable model-card links)
    trackio_static_space_id: bool | str | None = None
    # When to run evaluation
    eval_strategy: str = "no"
    # Number of update steps between evaluations if `eval_strategy='steps'`
    eval_steps: float | None = None
    # Number of epochs or steps to wait for before the first evaluation can be performed, depending on the eval_strategy
    eval_delay: float = 0.0
    # The batch size per device (GPU/TPU core/CPU) for evaluation
    per_device_eval_batch_size: int = 8
    # When performing evaluation and generating predictions, only returns the loss
    prediction_loss_only: bool = False
    # Whether to run through the entire `evaluation` step at the very beginning of training as a sanity check
    eval_on_start: bool = False
    # Whether to recursively concat inputs/losses/labels/predictions across batches
    eval_do_concat_batches: bool = True
    # Whether to run recursively gather object in a nested list/tuple/dictionary of objects from all devices
    eval_use_gather_object: bool = False
    # Number of predictions steps to accumulate the output tensors for, before moving the results to the CPU
    eval_accumulation_steps: int | None = None
    # Include additional data in the `compute_metrics` function
    include_for_metrics: list[str] = field(default_factory=list)
    # Break eval metrics calculation into batches to save memory
    batch_eval_metrics: bool = False
    # Save only model weights, not optimizer/scheduler/RNG state
    save_only_model: bool = False
    # The checkpoint save strategy to adopt during training
    save_strategy: str = "steps"
    # Save checkpoint every X updates steps
    save_steps: float = 500.0
    # When doing multi-node distributed training, whether to save models and checkpoints on each node, or only on the main one
    save_on_each_node: bool = False
    # Maximum number of checkpoints to keep
    save_total_limit: int | None = None
    # Enable JIT checkpointing on SIGTERM signal for graceful termination on preemptible workloads
    enable_jit_checkpoint: bool = False
    # Whether or not to push the model to the Hub every time the model is saved
    push_to_hub: bool = False
    # The token to use to push the model to the Hub
    hub_token: str | None = None
    # Whether to make the repo private
    hub_private_repo: bool | None = None
    # The name of the repository to keep in sync with the local `output_dir`
    hub_model_id: str | None = None
    # Defines what and when to push to Hub
    hub_strategy: str = "every_save"
    # Unless `True`, the Trainer will skip pushes if the previous one wasn't finished yet
    hub_always_push: bool = False
    # The revision to use when pushing to the Hub
    hub_revision: str | None = None
    # Load the best checkpoint at the end of training
    load_best_model_at_end: bool = False
    # Metric to use for comparing models when `load_best_model_at_end=True`
    metric_for_best_model: str | None = None
    # Whether higher metric values are better
    greater_is_better: bool | None = None
    # When resuming training, skip fast-forwarding through the dataset to reach the previous state
    ignore_data_skip: bool = False
    # Whether to restore the callback states from the checkpoint
    restore_callback_states_from_checkpoint: bool = False
    # Whether to call enable_full_determinism instead of set_seed for reproducibility in distributed training
    full_determinism: bool = False
    # Random seed that will be set at the beginning of training
    seed: int = 42
    # Random seed to be used with data samplers
    data_seed: int | None = None
    # Whether or not to use cpu
    use_cpu: bool = False
    # Configuration for the internal Accelerate integration
    accelerator_config: Any = None
    # Parallelism configuration for the training run
    parallelism_config: dict[str, Any] | None = None
    # Drop the last incomplete batch if it is not divisible by the batch size
    dataloader_drop_last: bool = False
    # Number of subprocesses to use for data loading (PyTorch only)
    dataloader_num_workers: int = 0
    # Whether or not to pin memory for DataLoader
    dataloader_pin_memory: bool = True
    # If True, the data loader will not shut down the worker processes after a dataset has been consumed once
    dataloader_persistent_workers: bool = False
    # Number of batches loaded in advance by each worker
    dataloader_prefetch_factor: int | None = None
    # The multiprocessing start method to use for data loading workers ('fork', 'spawn', or 'forkserver')
    dataloader_multiprocessing_context: str | None = None
    # If True (default), the data loader yields batches in the order workers were dispatched
    dataloader_in_order: bool = True
    # Whether or not to automatically remove the columns unused by the model forward method
    remove_unused_columns: bool = True
    # The list of keys in your dictionary of inputs that correspond to the labels
    label_names: list[str] | None = None
    # Sampler for training: 'random' (default), 'sequential', 'group_by_length', or 'batch_rebalance'
    train_sampling_strategy: str = "random"
    # Column name for precomputed lengths
    length_column_name: str = "length"
    # When using distributed training, the value of the flag `find_unused_parameters` passed to `DistributedDataParallel`
    ddp_find_unused_parameters: bool | None = None
    # When using distributed training, the value of the flag `bucket_cap_mb` passed to `DistributedDataParallel`
    ddp_bucket_cap_mb: int | None = None
    # When using distributed training, the value of the flag `broadcast_buffers` passed to `DistributedDataParallel`
    ddp_broadcast_buffers: bool | None = None
    # When using distributed training, the value of the flag `static_graph` passed to `DistributedDataParallel`
    ddp_static_graph: bool | None = None
    # The backend to use for distributed training
    ddp_backend: str | None = None
    # The timeout for `torch.distributed.init_process_group` calls (in seconds)
    ddp_timeout: int = 1800
    # Enable PyTorch Fully Sharded Data Parallel (FSDP) for distributed training
    fsdp: str | None = None
    # Tuning for FSDP (used only when `fsdp` is enabled)
    fsdp_config: Any = None
    # Enable DeepSpeed integration. Value is a path to a JSON config file or a dict
    deepspeed: Any = None
    # Enable one or more debug features
    debug: Any = ""
    # Whether to skip adding memory profiler reports to metrics
    skip_memory_metrics: bool = True
    # Whether to run training
    do_train: bool = False
    # Whether to run evaluation
    do_eval: bool = False
    # Whether to run predictions on the test set
    do_predict: bool = False
    # Path to a folder with a valid checkpoint for your model
    resume_from_checkpoint: bool | str | None = None
    # When using torch.distributed.launch (Deprecated), it will pass `local_rank` in the script, so we need this for the parser
    local_rank: int = -1


# field -> the strings it allows, each item of a list too; a part in [brackets] stands for any text
CHOICES: dict[str, tuple[str, ...]] = {
    "lr_scheduler_type": (
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
        "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy",
    ),
    "optim": (
        "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor", "adamw_anyprecision",
        "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "sgd", "adagrad", "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit",
        "lion_32bit", "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit",
        "paged_lion_8bit", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "galore_adamw", "galore_adamw_8bit",
        "galore_adafactor", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "lomo", "adalomo",
        "grokadamw", "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "apollo_adamw", "apollo_adamw_layerwise",
        "stable_adamw",
    ),
    "logging_strategy": ("no", "steps", "epoch"),
    "log_level": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "log_level_replica": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "eval_strategy": ("no", "steps", "epoch"),
    "save_strategy": ("no", "steps", "epoch", "best"),
    "hub_strategy": ("end", "every_save", "checkpoint", "all_checkpoints"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
    "train_sampling_strategy": ("random", "sequential", "group_by_length", "batch_rebalance"),
    "ddp_backend": ("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"),
}

# field -> the types that the class takes; a dotted path: a dict of that class's fields
ACCEPTED: dict[str, tuple[str, ...]] = {
    "lr_scheduler_kwargs": ("str", "dict[str, Any]", "None"),
    "optim_target_modules": ("str", "list[str]", "None"),
    "activation_checkpointing_kwargs": ("str", "dict[str, Any]", "None"),
    "gradient_checkpointing_kwargs": ("str", "dict[str, Any]", "None"),
    "report_to": ("str", "list[str]", "None"),
    "trackio_static_space_id": ("False", "str", "None"),
    "accelerator_config": ("str", "dict[str, Any]", "None"),
    "parallelism_config": ("accelerate.parallelism_config.ParallelismConfig", "None"),
    "fsdp_config": ("str", "dict[str, Any]", "None"),
    "deepspeed": ("str", "dict[str, Any]", "None"),
    "debug": ("str", "list[str]"),
}

"""`trl.GRPOConfig` (trl 1.16.0, transformers 5.23.0) as a schema: flattened, with that class's own defaults.

Written by `python -m llmmod.devtools.generate`, not by hand. 176 of 191 fields take just what the class takes, by their
annotation or with `CHOICES`; the rest are looser, and `ACCEPTED` says what the class itself takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class GRPOConfig:
    """Every argument of `trl.GRPOConfig`."""

    _target_: str = "trl.GRPOConfig"
    # The output directory where the model predictions and checkpoints will be written
    output_dir: str | None = None
    # The batch size per device for training
    per_device_train_batch_size: int = 8
    # Total number of training epochs to perform
    num_train_epochs: float = 3.0
    # Overrides `num_train_epochs`. If set to a positive number, the total number of training steps to perform
    max_steps: int = -1
    # The initial learning rate for AdamW
    learning_rate: float = 1e-06
    # The learning rate scheduler type to use
    lr_scheduler_type: str = "linear"
    # Additional parameters for the lr_scheduler, such as {'num_cycles': 1} for cosine with hard restarts
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
    # Whether to use bf16 (mixed) precision instead of 32-bit
    bf16: bool | None = None
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
    # Enable gradient checkpointing to trade compute for memory
    gradient_checkpointing: bool = True
    # Deprecated alias of `activation_checkpointing_kwargs`, will be removed in v6
    gradient_checkpointing_kwargs: Any = None
    # Compile the model using `torch.compile()` for faster training
    torch_compile: bool = False
    # Backend for `torch.compile()`. If set, automatically enables `torch_compile`
    torch_compile_backend: str | None = None
    # Compilation mode for `torch.compile()`
    torch_compile_mode: str | None = None
    # Enable Liger Kernel optimizations: transformers patches the model's layers with Liger's Triton kernels
    use_liger_kernel: bool = False
    # Configuration for Liger Kernel
    liger_kernel_config: dict[str, bool] | None = None
    # Whether or not to use cache for the model For training, this is usually not needed apart from some PEFT methods that uses ...
    use_cache: bool = False
    # If not None, activates NEFTune noise embeddings
    neftune_noise_alpha: float | None = None
    # Number of steps to wait before calling `torch.<device>.empty_cache()`
    torch_empty_cache_steps: int | None = None
    # Whether to find a training batch size that will fit into memory automatically through exponential decay, avoiding CUDA ...
    auto_find_batch_size: bool = False
    # The logging strategy to adopt during training
    logging_strategy: str = "steps"
    # Log every X updates steps
    logging_steps: float = 10.0
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
    # Whether to only keep the column 'prompt' in the dataset
    remove_unused_columns: bool | None = False
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
    resume_from_checkpoint: str | None = None
    # When using torch.distributed.launch (Deprecated), it will pass `local_rank` in the script, so we need this for the parser
    local_rank: int = -1
    # Keyword arguments for `transformers.AutoModelForCausalLM.from_pretrained`, used when the `model` argument of the `GRPOTrainer` is ...
    model_init_kwargs: Any = None
    # Whether to allow loading models and tokenizers that ship custom Python code from the Hub
    trust_remote_code: bool = False
    # Coefficient of the load-balancing auxiliary loss for Mixture-of-Experts (MoE) models, added to the training loss with this weight
    router_aux_loss_coef: float | None = None
    # Whether to disable dropout in the model
    disable_dropout: bool = False
    # Whether to cast the language modeling head of the policy and reference models to float32
    cast_lm_head_to_fp32: bool = False
    # Number of generations to sample
    num_generations: int | None = 8
    # Number of generations to sample during evaluation
    num_generations_eval: int | None = None
    # Maximum length of the generated completion
    max_completion_length: int | None = 512
    # This setting applies to DeepSpeed ZeRO-3. If enabled, the policy model weights are gathered for generation, improving generation speed
    ds3_gather_for_generation: bool = True
    # Whether to shuffle the training dataset
    shuffle_dataset: bool | None = True
    # If set, the prompts ids and completions ids will be padded to a multiple of this value
    pad_to_multiple_of: int | str | None = "auto"
    # Batch size to use for generation
    generation_batch_size: int | None = None
    # Number of steps per generation
    steps_per_generation: int | None = None
    # Temperature for sampling. The higher the temperature, the more random the completions
    temperature: float = 1.0
    # Float that controls the cumulative probability of the top tokens to consider
    top_p: float = 1.0
    # Number of highest probability vocabulary tokens to keep for top-k-filtering
    top_k: int = 0
    # Minimum token probability, which will be scaled by the probability of the most likely token
    min_p: float | None = None
    # Additional keyword arguments to pass to `GenerationConfig` (if using transformers) or `SamplingParams` (if using vLLM) when ...
    generation_kwargs: Any = None
    # Additional keyword arguments to pass to the `apply_chat_template` function when generating completions
    chat_template_kwargs: Any = None
    # Float that penalizes new tokens based on whether they appear in the prompt and the generated text so far
    repetition_penalty: float = 1.0
    # Implementation of the cache method for faster generation when use_vllm is set to False
    cache_implementation: str | None = None
    # Whether to use vLLM for generating completions
    use_vllm: bool = False
    # Mode to use for vLLM integration when `use_vllm` is set to `True`
    vllm_mode: str = "colocate"
    # Model implementation to use for vLLM
    vllm_model_impl: str = "vllm"
    # Enable vLLM sleep mode to offload weights/cache during the optimizer step
    vllm_enable_sleep_mode: bool = False
    # Regex for vLLM structured outputs
    vllm_structured_outputs_regex: str | None = None
    # Base URL for the vLLM server (e.g., 'http://localhost:8000')
    vllm_server_base_url: str | None = None
    # Host of the vLLM server to connect to
    vllm_server_host: str = "0.0.0.0"
    # Port of the vLLM server to connect to
    vllm_server_port: int = 8000
    # Total timeout duration in seconds to wait for the vLLM server to be up
    vllm_server_timeout: float = 240.0
    # Port number for the weight update group
    vllm_group_port: int = 51216
    # Control the GPU memory utilization for vLLM
    vllm_gpu_memory_utilization: float = 0.3
    # Context window for vLLM
    vllm_max_model_length: int | None = None
    # Control the tensor parallel size for vLLM
    vllm_tensor_parallel_size: int = 1
    # KL coefficient. If `0.0` (default), the reference model is not loaded, reducing memory usage and improving training speed
    beta: float = 0.0
    # Number of iterations per batch (denoted as mu in the algorithm)
    num_iterations: int = 1
    # Epsilon value for clipping
    epsilon: float = 0.2
    # Enables the upper clipping bound in two-sided GRPO loss when set to a float
    delta: float | None = None
    # Upper-bound epsilon value for clipping
    epsilon_high: float | None = None
    # Temperature for tokens with non-positive advantage scores used in the `sapo` loss function
    sapo_temperature_neg: float = 1.05
    # Temperature for tokens with positive advantage scores used in the `sapo` loss function
    sapo_temperature_pos: float = 1.0
    # k parameter for positive advantages, it is the power exponent in the VESPO loss
    vespo_k_pos: float = 2.0
    # lambda parameter for positive advantages, it is the decay factor in the VESPO loss
    vespo_lambda_pos: float = 3.0
    # k parameter for negative advantages, it is the power exponent in the VESPO loss
    vespo_k_neg: float = 3.0
    # lambda parameter for negative advantages, it is the exponential decay factor in the VESPO loss
    vespo_lambda_neg: float = 2.0
    # Controls whether importance sampling ratios are computed at the `'token'` or `'sequence'` level
    importance_sampling_level: str = "token"
    # Weights for each reward function
    reward_weights: list[float] | None = None
    # Method to aggregate multiple reward functions
    multi_objective_aggregation: str = "sum_then_normalize"
    # Specifies the scaling strategy for rewards
    scale_rewards: str = "group"
    # Specifies the loss formulation to use
    loss_type: str = "dapo"
    # When enabled, truncated completions are excluded from the loss calculation, preventing them from being incorrectly penalized and ...
    mask_truncated_completions: bool = False
    # Whether to synchronize the reference model with the active model every `ref_model_sync_steps` steps, using the ...
    sync_ref_model: bool = False
    # alpha parameter from the TR-DPO paper, which controls the mix between the current policy and the previous reference policy during ...
    ref_model_mixup_alpha: float = 0.6
    # tau parameter from the TR-DPO paper, which determines how frequently the current policy is synchronized with the reference policy
    ref_model_sync_steps: int = 512
    # rho parameter from Beyond the 80/20 Rule
    top_entropy_quantile: float = 1.0
    # Coefficient of the entropy regularization term in the loss
    entropy_coef: float = 0.0
    # Whether to use adaptive entropy control, introduced in Skywork-OR1 (https://huggingface.co/papers/2505.22312)
    use_adaptive_entropy: bool = False
    # Lower bound for the entropy coefficient when using adaptive entropy control
    entropy_coef_min: float = 0.0
    # Upper bound for the entropy coefficient when using adaptive entropy control
    entropy_coef_max: float = 1.0
    # Step size for adjusting the entropy coefficient during adaptive entropy control
    entropy_coef_delta: float = 0.005
    # Target mean per-token entropy (nats) for adaptive entropy control
    entropy_target: float = 0.2
    # Maximum number of tool-calling turns when training an agent
    max_tool_calling_iterations: int | None = None
    # Whether to apply Importance Sampling (IS) to correct for the mismatch between vLLM completion logprobs and recomputed training ...
    vllm_importance_sampling_correction: bool = True
    # Specifies how Importance Sampling (IS) is performed when vllm_importance_sampling_correction=True
    vllm_importance_sampling_mode: str = "sequence_mask"
    # Importance sampling upper bound C_max used by `vllm_importance_sampling_mode`
    vllm_importance_sampling_clip_max: float | None = 3.0
    # Importance sampling lower bound C_min used by `vllm_importance_sampling_mode`
    vllm_importance_sampling_clip_min: float | None = None
    # Threshold for off-policy sequence masking
    off_policy_mask_threshold: float | None = None
    # Whether to multiply the KL term by the importance sampling ratio, so that the KL gradient becomes the unbiased reverse-KL ...
    use_bias_correction_kl: bool = True
    # Whether to log a sample of (prompt, completion) pairs every `logging_steps` steps
    log_completions: bool = False
    # Whether to log multimodal content (images, videos, etc.) together with completions
    log_multimodal: bool = True
    # Number of completions to print with `rich`
    num_completions_to_print: int | None = None
    # Whether to log unique prompts
    log_unique_prompts: bool = False
    # Hugging Face Hub repository to save the completions
    log_completions_hub_repo: str | None = None
    # Whether to use transformers' continuous batching engine for generating completions
    use_transformers_continuous_batching: bool = False
    # Keyword arguments for `transformers.generation.ContinuousBatchingConfig`
    transformers_continuous_batching_config: Any = None
    # Deprecated. Use `use_transformers_continuous_batching` instead
    use_transformers_paged: bool = False
    # Deprecated, use `vllm_importance_sampling_clip_max` instead
    vllm_importance_sampling_cap: float | None = None


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
    "model_init_kwargs": ("str", "dict[str, Any]", "None"),
    "generation_kwargs": ("str", "dict[str, Any]", "None"),
    "chat_template_kwargs": ("str", "dict[str, Any]", "None"),
    "transformers_continuous_batching_config": ("str", "dict[str, Any]", "None"),
}

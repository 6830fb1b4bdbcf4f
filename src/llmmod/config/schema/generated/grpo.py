"""`trl.GRPOConfig` (trl 1.16.0, transformers 5.23.0) as a schema, with that class's own defaults.

Written by `python -m devtools.generate`, not by hand. 176 of 191 fields take just what the class takes, by their
annotation or with `CHOICES`; the rest are looser, and `ACCEPTED` says what the class itself takes.
What isn't here is as in `training_arguments`.
"""

from dataclasses import dataclass, field
from typing import Any

from llmmod.config.schema.generated.training_arguments import TrainingArguments


@dataclass(init=False, repr=False, eq=False)  # only extended, never made: without them it is defined four times as fast
class GRPOConfig(TrainingArguments):
    """Every argument of `trl.GRPOConfig`."""

    _target_: str = "trl.GRPOConfig"
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
    # Whether to only keep the column 'prompt' in the dataset
    remove_unused_columns: bool | None = False
    # Keyword arguments for `transformers.AutoModelForCausalLM.from_pretrained`, used when the `model` argument of the `GRPOTrainer` is
    # provided as a string
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
    # Additional keyword arguments to pass to `GenerationConfig` (if using transformers) or `SamplingParams` (if using vLLM) when sampling
    # completions
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
    # When enabled, truncated completions are excluded from the loss calculation, preventing them from being incorrectly penalized and
    # introducing noise during training
    mask_truncated_completions: bool = False
    # Whether to synchronize the reference model with the active model every `ref_model_sync_steps` steps, using the `ref_model_mixup_alpha`
    # parameter
    sync_ref_model: bool = False
    # alpha parameter from the TR-DPO paper, which controls the mix between the current policy and the previous reference policy during
    # updates
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
    # Whether to apply Importance Sampling (IS) to correct for the mismatch between vLLM completion logprobs and recomputed training
    # logprobs
    vllm_importance_sampling_correction: bool = True
    # Specifies how Importance Sampling (IS) is performed when vllm_importance_sampling_correction=True
    vllm_importance_sampling_mode: str = "sequence_mask"
    # Importance sampling upper bound C_max used by `vllm_importance_sampling_mode`
    vllm_importance_sampling_clip_max: float | None = 3.0
    # Importance sampling lower bound C_min used by `vllm_importance_sampling_mode`
    vllm_importance_sampling_clip_min: float | None = None
    # Threshold for off-policy sequence masking
    off_policy_mask_threshold: float | None = None
    # Whether to multiply the KL term by the importance sampling ratio, so that the KL gradient becomes the unbiased reverse-KL gradient, as
    # described in the DeepSeek-V3.2 paper
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
CHOICES: dict[str, tuple[str, ...]] = {}

# field -> the types that the class takes; a dotted path: a dict of that class's fields
ACCEPTED: dict[str, tuple[str, ...]] = {
    "lr_scheduler_kwargs": ("str", "dict[str, Any]", "None"),
    "model_init_kwargs": ("str", "dict[str, Any]", "None"),
    "generation_kwargs": ("str", "dict[str, Any]", "None"),
    "chat_template_kwargs": ("str", "dict[str, Any]", "None"),
    "transformers_continuous_batching_config": ("str", "dict[str, Any]", "None"),
}

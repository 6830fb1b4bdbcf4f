"""The arguments of a stage's trainer that are not read, with their conditions: the rules of `keys.check_unread` for `training`.

benchmarks/effects.py tries every argument of every stage: an argument that changes nothing there has a rule here. For a user's own
trainer, the rules cover only what llmmod decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmmod.config.schema.training import CLIPPED, SAID_ELSEWHERE, SCORES
from llmmod.config.step_parts import Context
from llmmod.config.validate.stages import losses, reads_smoothing
from llmmod.config.validate.training import evaluates_nothing
from llmmod.distributed import expected_processes

Node = dict[str, Any]
Condition = Callable[[Context, str, Node], bool]

_HUB = ("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision")
_ENGINES = (
    *(f"vllm_{name}" for name in (
        "mode", "model_impl", "enable_sleep_mode", "structured_outputs_regex", "server_base_url", "server_host", "server_port",
        "server_timeout", "group_port", "gpu_memory_utilization", "max_model_length", "tensor_parallel_size", "importance_sampling_cap",
        "importance_sampling_correction", "importance_sampling_mode", "importance_sampling_clip_max", "importance_sampling_clip_min",
    )),
    "transformers_continuous_batching_config",
)  # fmt: skip
# Arguments for an evaluation's predictions, which are kept only if a user's own function measures them.
_OF_PREDICTIONS = (
    "prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "eval_do_concat_batches", "eval_use_gather_object",
    "eval_accumulation_steps",
)  # fmt: skip
# As `transformers.trainer_optimizer` (5.23) makes them.
_PROJECTED = ("galore_", "apollo_")
_WITHOUT_ADAM = ("adafactor", "sgd", "adagrad", "rmsprop", "rmsprop_", "galore_", "lomo", "adalomo", "grokadamw", "schedule_free_sgd")
_WITHOUT_ARGS = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor", "lomo", "adalomo")
_SORTED = ("random", "group_by_length")  # the default, and the name in all trainers for the argument of Seq2SeqTrainer
_NOT_HELD_OUT = "examples to evaluate on are not held out|Set dataset.val_size"
_NOT_RESUMED = "only a resumed training reads it|Set training.resume_from_checkpoint"
_NO_WORKERS = "not read with dataloader_num_workers=0"


def has(name: str, *values: Any) -> Condition:
    """A condition: the field has one of these values."""
    return lambda context, key, node: node.get(name) in values


def always(context: Context, key: str, node: Node) -> bool:
    """A condition that always holds."""
    return True


def _on(*names: str) -> Condition:
    """A condition: one of the fields is set, and not to false."""
    return lambda context, key, node: any(node.get(name) for name in names)


def _ours(node: Node) -> bool:
    """Whether the trainer is one of llmmod's: a user's own class may read any argument."""
    return str((node.get("trainer") or {}).get("_target_")).startswith("llmmod.")


def _ours_and(condition: Condition) -> Condition:
    return lambda context, key, node: _ours(node) and condition(context, key, node)


def _optimizer(*names: str) -> Condition:
    """A condition: the optimizer is one of these; a name that ends in an underscore is a prefix."""
    return lambda context, key, node: any(
        node.get("optim") == name or (name[-1] == "_" and str(node.get("optim")).startswith(name)) for name in names
    )


def nor(*conditions: Condition) -> Condition:
    """A condition: none of these holds."""
    return lambda context, key, node: not any(condition(context, key, node) for condition in conditions)


def _reports_to(node: Node, *integrations: str) -> bool:
    given = node.get("report_to")
    found = given if isinstance(given, list) else [given]
    return any(name in (*integrations, "all") for name in found)


def _keeps_no_predictions(context: Context, key: str, node: Node) -> bool:
    measured = (node.get("trainer") or {}).get("compute_metrics")
    return _ours(node) and not (measured and "completion_only_loss" in node)


def _compares_nothing(context: Context, key: str, node: Node) -> bool:
    best = node.get("load_best_model_at_end") or node.get("save_strategy") == "best"
    best = best or node.get("early_stopping_patience") is not None
    return not (best or node.get("metric_for_best_model") or node.get("lr_scheduler_type") == "reduce_lr_on_plateau")


# the fields, the condition under which they are not read, why and what to do
OF_TRAINING: tuple[tuple[tuple[str, ...], Condition, str], ...] = (
    (("num_train_epochs",), lambda c, k, n: (n.get("max_steps") or -1) > 0, "not read, since max_steps is set|Set one of them"),
    # eval_strategy=no is allowed if examples are not held out.
    (("eval_strategy", "eval_steps", "eval_delay"),
     lambda c, k, n: n.get("eval_strategy") != "no" and evaluates_nothing(c, k), _NOT_HELD_OUT),
    (("eval_on_start",), lambda c, k, n: bool(n.get("eval_on_start")) and evaluates_nothing(c, k), _NOT_HELD_OUT),
    (("load_best_model_at_end",), lambda c, k, n: bool(n.get("load_best_model_at_end")) and evaluates_nothing(c, k), _NOT_HELD_OUT),
    (("eval_steps",), has("eval_strategy", "no", "epoch"), "only read with eval_strategy=steps"),
    (("eval_delay",), has("eval_strategy", "no"), "not read with eval_strategy=no"),
    (("save_steps",), has("save_strategy", "no", "epoch", "best"), "only read with save_strategy=steps"),
    (("save_total_limit", "save_only_model"), has("save_strategy", "no"), "not read with save_strategy=no"),
    (("logging_steps",), has("logging_strategy", "no", "epoch"), "only read with logging_strategy=steps"),
    (("early_stopping_patience",), lambda c, k, n: n.get("early_stopping_patience") is not None and evaluates_nothing(c, k), _NOT_HELD_OUT),
    (("early_stopping_threshold",), has("early_stopping_patience", None), "only read with early_stopping_patience"),
    (("greater_is_better",), _compares_nothing, "a best model is not selected|Set training.metric_for_best_model"),
    (("gradient_checkpointing", "gradient_checkpointing_kwargs"), has("activation_checkpointing", True, False),
     "not read, since activation_checkpointing, its new name, is set|Set one of them"),
    (("gradient_checkpointing_kwargs",), has("gradient_checkpointing", False), "not read with gradient_checkpointing=false"),
    (("activation_checkpointing_kwargs",), has("activation_checkpointing", None, False), "only read with activation_checkpointing=true"),
    (("dataloader_prefetch_factor", "dataloader_persistent_workers"), has("dataloader_num_workers", 0), _NO_WORKERS),
    (("dataloader_multiprocessing_context", "dataloader_in_order"), has("dataloader_num_workers", 0), _NO_WORKERS),
    (("sortish_sampler",), lambda c, k, n: bool(n.get("sortish_sampler")) and n.get("train_sampling_strategy") not in _SORTED,
     "train_sampling_strategy sets another order|Set one of them"),
    (("sortish_sampler",), lambda c, k, n: bool(n.get("sortish_sampler")) and "num_generations" in n,
     "the lengths of a prompt's answers are unknown before they are sampled"),
    (("dataloader_drop_last",), _ours_and(lambda c, k, n: bool(n.get("dataloader_drop_last")) and n.get("data_kind") == "prompt"),
     "the last rollout of an epoch is filled with the first prompts of the epoch"),
    (("optim_target_modules",), nor(_optimizer(*_PROJECTED)), "only the optimizers galore_… and apollo_… read it"),
    (("optim_args",), _optimizer(*_WITHOUT_ARGS), "this optimizer doesn't have arguments of its own"),
    (("adam_beta1", "adam_beta2", "adam_epsilon"), _optimizer(*_WITHOUT_ADAM), "this optimizer is not Adam|Set training.optim_args"),
    (("label_smoothing_factor",), _ours_and(nor(lambda c, k, n: n.get("data_kind") in ("conversation", "document"))),
     "only the losses of pt and sft smooth labels|Leave it out; dpo has training.label_smoothing"),
    (("label_smoothing_factor",), lambda c, k, n: n.get("loss_type") in ("dft", "chunked_nll"), "only the loss nll reads it"),
    (("discopop_tau",), lambda c, k, n: "discopop" not in losses(n), "only the loss discopop reads it"),
    (("label_smoothing",), lambda c, k, n: not reads_smoothing(n), "only the losses exo_pair, robust and aot read it"),
    (("f_alpha_divergence_coef",), nor(has("f_divergence_type", "alpha_divergence")), "only read with f_divergence_type=alpha_divergence"),
    (("ref_model_mixup_alpha", "ref_model_sync_steps"), has("sync_ref_model", False), "not read with sync_ref_model=false"),
    (("precompute_ref_batch_size",), has("precompute_ref_log_probs", False), "not read with precompute_ref_log_probs=false"),
    (("torch_compile_backend", "torch_compile_mode"), has("torch_compile", False), "only read with torch_compile=true"),
    (("fsdp_config",), has("fsdp", None, ""), "not read, since fsdp is not set"),
    (("liger_kernel_config",), has("use_liger_kernel", False), "only read with use_liger_kernel=true"),
    (("generation_max_length", "generation_num_beams", "generation_config"), has("predict_with_generate", False),
     "not read with predict_with_generate=false|The steps predict and chat read generation.*"),
    (("generation_max_length", "generation_num_beams", "generation_config"),
     lambda c, k, n: (n.get("predict") or {}).get("_target_") == SCORES, "predict writes scores in this stage instead of answers"),
    (("horizon",), has("target", None), "only read with training.target"),
    (("use_score_norm",), lambda c, k, n: bool(n.get("use_score_norm")) and n.get("use_score_scaling") is False,
     "only read with use_score_scaling=true"),
    (("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"), has("use_adaptive_entropy", False),
     "only read with use_adaptive_entropy=true"),
    (("use_bias_correction_kl",), has("beta", 0), "not read with training.beta=0"),
    (("sapo_temperature_neg", "sapo_temperature_pos"), nor(has("loss_type", "sapo")), "only the loss sapo reads it"),
    (("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), nor(has("loss_type", "vespo")),
     "only the loss vespo reads it"),
    (("epsilon", "delta"), nor(has("loss_type", *CLIPPED)), "not read by this loss_type"),
    (_ENGINES, always, "the model that is trained generates the answers, without another engine"),
    (("max_tool_calling_iterations", "log_multimodal", "chat_template_kwargs", "ds3_gather_for_generation"), always,
     "prompts are rendered to text before, and tools are not called"),
    (("num_completions_to_print", "log_unique_prompts"), has("log_completions", False), "only read with log_completions=true"),
    (("run_name", "log_unique_prompts"), has("report_to", None, "none", [], ["none"]), "only read with training.report_to"),
    (("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), lambda c, k, n: not _reports_to(n, "trackio"),
     "only read with training.report_to=trackio"),
    (("ignore_data_skip", "restore_callback_states_from_checkpoint"), has("resume_from_checkpoint", None, False), _NOT_RESUMED),
    (_OF_PREDICTIONS, _keeps_no_predictions, "an evaluation accumulates sums and doesn't keep predictions"),
    (("bf16_full_eval", "fp16_full_eval"), _on("bf16_full_eval", "fp16_full_eval"),
     "it would round the weights for the rest of the run|Set model.dtype, or training.bf16, which only rounds products"),
    (("logging_nan_inf_filter",), _ours_and(_on("logging_nan_inf_filter")), "a loss that is not finite ends the training"),
    (("use_cache",), _ours_and(_on("use_cache")), "training doesn't cache keys and values|For answers, set generation.use_cache"),
    (("enable_jit_checkpoint",),
     lambda c, k, n: bool(n.get("enable_jit_checkpoint"))
     and expected_processes(c.get("distributed") or {}, use_cpu=bool(n.get("use_cpu"))) == 1,
     "a training that a signal ends always saves a checkpoint"),
    (("parallelism_config",), _on("parallelism_config"), "the stages don't split an example over devices|Set training.fsdp"),
    (("remove_unused_columns", "length_column_name", "label_names"), always, "llmmod creates the columns itself"),
    (("local_rank",), always, "torchrun and accelerate set it"),
    (_HUB, always, "a run doesn't upload anything|Export, and upload with hf upload"),
    *(((name,), always, f"llmmod does this itself, before the trainer|Set {where}") for name, where in SAID_ELSEWHERE.items()),
)  # fmt: skip

"""Keys that the user set and the chosen options never read: they would change nothing, and the user expects something of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llmmod.errors import Problem
from llmmod.schema.names import PARTS, split_key
from llmmod.schema.step import ANYTHING
from llmmod.schema.step.predict import PredictConf
from llmmod.schema.training import CONTINUES, SAID_ELSEWHERE, SCORES
from llmmod.schema.training.grpo import CLIPPED
from llmmod.schema.validate.context import Context, label
from llmmod.schema.validate.contradictions import evaluates_nothing, without_dropout
from llmmod.schema.validate.data_kinds import only
from llmmod.schema.validate.preferences import losses, reads_smoothing

Rule = tuple[str, tuple[str, ...], Callable[[Context, str, dict[str, Any]], bool], str]

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty", "diversity_penalty", "num_beam_groups")
_HUB = ("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision")
_QUANTIZATION = (
    "type", "double_quant", "compute_dtype", "quant_storage", "llm_int8_threshold", "llm_int8_has_fp16_weight", "llm_int8_skip_modules",
)  # fmt: skip
_ENGINES = (
    *(f"vllm_{name}" for name in (
        "mode", "model_impl", "enable_sleep_mode", "structured_outputs_regex", "server_base_url", "server_host", "server_port",
        "server_timeout", "group_port", "gpu_memory_utilization", "max_model_length", "tensor_parallel_size", "importance_sampling_cap",
        "importance_sampling_correction", "importance_sampling_mode", "importance_sampling_clip_max", "importance_sampling_clip_min",
    )),
    "transformers_continuous_batching_config",
)  # fmt: skip
_NOT_HELD_OUT = "no examples are held out to evaluate on|Set dataset.val_size"
_NO_ANSWERS = "only answers to prompts are measured and compared, and predict gives none in this stage|Leave it out"
_AUTO_RENDER = (
    "prefix", "empty_prefix", "prompt", "response", "sep", "system_in_query", "strip", "bos", "first_round", "efficient_eos",
)  # fmt: skip


def _is(name: str, *values: Any) -> Callable[[Context, str, dict[str, Any]], bool]:
    """A condition: the field has one of these values."""
    return lambda context, key, node: node.get(name) in values


def _always(context: Context, key: str, node: dict[str, Any]) -> bool:
    return True


def _without_answers(context: Context, key: str, node: dict[str, Any]) -> bool:
    """Whether all that goes by a step `predict` writes documents on or gives scores; a class of the user's own may read anything."""
    step = key.split(".")[1]
    if context.step_type(step) is not PredictConf:
        return False
    readers = [name for name in context.steps if name == step or key in context.reads(name)]
    return all(context.get(f"{context.part(name, 'training')}.predict._target_") in (CONTINUES, SCORES) for name in readers)


# what the node is called, its fields, when they are not read, why and what to do
RULES: tuple[Rule, ...] = (
    ("generation", _SAMPLING, _is("do_sample", False), "not read with generation.do_sample=false|Use generation=sample"),
    ("generation", _BEAMS, _is("num_beams", 1), "not read with generation.num_beams=1|Set generation.num_beams"),
    ("dataset", ("buffer_size",), _is("streaming", False), "not read with streaming=false"),
    ("dataset", ("num_proc", "cache", "cache_max_gb"), _is("streaming", True), "not read with streaming=true"),
    ("dataset", ("cache_max_gb",), _is("cache", False), "not read with cache=false"),
    ("dataset", ("seed",), lambda c, k, n: not n.get("val_size") and not n.get("streaming"),
     "only the split by val_size reads it|Set val_size, or seed at the root"),
    ("dataset", ("mask_prompt",), lambda c, k, n: only(c, k, "document", "preference", "judgement", "prompt"),
     "not read: of this stage's rows it is known what is trained"),
    ("dataset", ("ranked",), lambda c, k, n: only(c, k, "conversation", "document", "prompt"),
     "only answers that are compared or judged can be ranked|Leave it out, or use stage=rm, dpo or kto"),
    ("dataset", ("cutoff_policy", "system"), lambda c, k, n: only(c, k, "document"), "a document is a text, and goes on in the next row"),
    ("dataset", ("drop_last_block",),
     lambda c, k, n: bool(n.get("packing")) or only(c, k, "conversation", "preference", "judgement", "prompt"),
     "only documents that are joined into blocks have a last one|Use stage=pt with dataset.packing=false"),
    ("dataset", ("mix_stopping",), lambda c, k, n: not n.get("mix"), "only read with dataset.mix"),
    ("model", ("architecture",), lambda c, k, n: not c.smoke, "only a rehearsal reads it|Set smoke=true, or model.config"),
    ("model.quantization", _QUANTIZATION, _is("bits", None), "not read, since bits is null|Set bits to 4 or 8"),
    ("model.quantization", ("type", "double_quant", "quant_storage"), _is("bits", 8), "only read with bits=4"),
    ("model.quantization", ("llm_int8_threshold", "llm_int8_has_fp16_weight"), _is("bits", 4), "only read with bits=8"),
    ("model", ("shift_attn_group_size",), _is("shift_attn", False), "not read with shift_attn=false|Set model.shift_attn=true"),
    ("model.rope_scaling", ("factor",), _is("type", None), "not read, since type is null|Set model.rope_scaling.type"),
    ("render", _AUTO_RENDER, _is("_target_", "llmmod.render.auto.AutoTemplate"), "render=auto writes what the chat template says|"
     "Choose another render"),
    ("render", ("template",), _is("_target_", "llmmod.render.template.Template"), "only render=auto reads it|Set render=auto"),
    ("training", ("num_train_epochs",), lambda c, k, n: (n.get("max_steps") or -1) > 0, "not read, since max_steps is set|Set one of them"),
    # To say that nothing is evaluated where nothing is held out is no mistake.
    ("training", ("eval_strategy", "eval_steps", "eval_delay"),
     lambda c, k, n: n.get("eval_strategy") != "no" and evaluates_nothing(c, k), _NOT_HELD_OUT),
    ("training", ("eval_on_start",), lambda c, k, n: bool(n.get("eval_on_start")) and evaluates_nothing(c, k), _NOT_HELD_OUT),
    ("training", ("load_best_model_at_end",),
     lambda c, k, n: bool(n.get("load_best_model_at_end")) and evaluates_nothing(c, k), _NOT_HELD_OUT),
    ("training", ("eval_steps",), _is("eval_strategy", "no", "epoch"), "only read with eval_strategy=steps"),
    ("training", ("eval_delay",), _is("eval_strategy", "no"), "not read with eval_strategy=no"),
    ("training", ("save_steps",), _is("save_strategy", "no", "epoch", "best"), "only read with save_strategy=steps"),
    ("training", ("save_total_limit", "save_only_model"), _is("save_strategy", "no"), "not read with save_strategy=no"),
    ("training", ("logging_steps",), _is("logging_strategy", "no", "epoch"), "only read with logging_strategy=steps"),
    ("training", ("gradient_checkpointing_kwargs",), _is("gradient_checkpointing", False), "not read with gradient_checkpointing=false"),
    ("training", ("dataloader_prefetch_factor", "dataloader_persistent_workers"), _is("dataloader_num_workers", 0),
     "not read with dataloader_num_workers=0"),
    ("training", ("discopop_tau",), lambda c, k, n: "discopop" not in losses(n), "only the loss discopop reads it"),
    ("training", ("label_smoothing",), lambda c, k, n: not reads_smoothing(n), "only the losses exo_pair, robust and aot read it"),
    ("training", ("f_alpha_divergence_coef",), lambda c, k, n: n.get("f_divergence_type") != "alpha_divergence",
     "only read with f_divergence_type=alpha_divergence"),
    ("training", ("ref_model_mixup_alpha", "ref_model_sync_steps"), _is("sync_ref_model", False), "not read with sync_ref_model=false"),
    ("training", ("precompute_ref_batch_size",), _is("precompute_ref_log_probs", False), "not read with precompute_ref_log_probs=false"),
    ("training", ("torch_compile_backend", "torch_compile_mode"), _is("torch_compile", False), "only read with torch_compile=true"),
    ("training", ("fsdp_config",), _is("fsdp", None, ""), "not read, since fsdp is not set"),
    ("training", ("generation_max_length", "generation_num_beams", "generation_config"), _is("predict_with_generate", False),
     "not read with predict_with_generate=false|The steps predict and chat read generation.*"),
    ("training", ("horizon",), _is("target", None), "only read with training.target"),
    ("training", ("use_score_norm",), lambda c, k, n: bool(n.get("use_score_norm")) and n.get("use_score_scaling") is False,
     "only read with use_score_scaling=true"),
    ("training", ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"), _is("use_adaptive_entropy", False),
     "only read with use_adaptive_entropy=true"),
    ("training", ("use_bias_correction_kl",), _is("beta", 0), "not read with training.beta=0"),
    ("training", ("sapo_temperature_neg", "sapo_temperature_pos"), lambda c, k, n: n.get("loss_type") != "sapo",
     "only the loss sapo reads it"),
    ("training", ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), lambda c, k, n: n.get("loss_type") != "vespo",
     "only the loss vespo reads it"),
    ("training", ("epsilon", "delta"), lambda c, k, n: n.get("loss_type") not in CLIPPED, "not read by this loss_type"),
    ("training", _ENGINES, _always, "the model itself answers, and no other engine"),
    ("training", ("max_tool_calling_iterations", "log_multimodal", "chat_template_kwargs", "ds3_gather_for_generation"), _always,
     "prompts come rendered, as texts, and no tool is called"),
    ("training", ("num_completions_to_print", "log_unique_prompts"), _is("log_completions", False), "only read with log_completions=true"),
    ("training", ("remove_unused_columns", "length_column_name", "label_names"), _always, "llmmod makes the columns itself"),
    ("training", ("local_rank",), _always, "torchrun and accelerate say it"),
    ("training", _HUB, _always, "a run uploads nothing|Export, and upload with hf upload"),
    *(("training", (name,), _always, f"llmmod does this itself, before the trainer|Set {where}") for name, where in SAID_ELSEWHERE.items()),
    ("step", ("metrics",), _without_answers, _NO_ANSWERS),
    ("step", ("compare_with_base",), lambda c, k, n: bool(n.get("compare_with_base")) and _without_answers(c, k, n), _NO_ANSWERS),
    ("finetune", ("lora_dropout",), lambda c, k, n: bool(n.get("lora_dropout")) and without_dropout(c, k),
     "not read with training.disable_dropout=true|Set training.disable_dropout=false"),
    ("finetune", ("loftq_config",), lambda c, k, n: n.get("init_lora_weights") != "loftq", "only read with init_lora_weights=loftq"),
)  # fmt: skip


def check_unread(context: Context) -> Iterator[Problem]:
    """A problem for each key that the user set and nothing reads."""
    for key in sorted(context.user_keys, key=_order(context)):
        parts = split_key(key)
        if problem := _of_no_step(context, key, parts) or _by_rule(context, key, parts):
            yield problem


def _order(context: Context) -> Callable[[str], tuple[int, str]]:
    """The order of a configuration's parts, so that problems come in a stable one."""
    names = list(context.plain)
    return lambda key: (names.index(split_key(key)[0]) if split_key(key)[0] in names else len(names), key)


def _of_no_step(context: Context, key: str, parts: list[str]) -> Problem | None:
    """A key of a step that isn't in the pipeline, or of a part that none of its steps reads."""
    pipeline = f"[{','.join(map(str, context.get('pipeline') or []))}]"
    reads = {step: context.reads(step) for step in context.steps}
    if parts[0] == "steps" and len(parts) > 2:
        if parts[1] not in reads and not any(f"steps.{parts[1]}" in names for names in reads.values()):
            return Problem(key, f"not read, since {parts[1]} is not in the pipeline {pipeline}", do="Add it, or leave the key out")
        if parts[1] in reads and parts[2] in PARTS and not _reads(reads[parts[1]], ".".join(parts[2:])):
            return Problem(key, f"the step {parts[1]} doesn't read it", do="Leave it out")
        return None
    readers = [step for step in reads if not _has_own(context, step, parts[0]) and _reads(reads[step], key)]
    if parts[0] in ANYTHING and context.steps and not readers:
        return Problem(key, f"nothing in the pipeline {pipeline} reads it", do="Leave it out")
    return None


def _has_own(context: Context, step: str, part: str) -> bool:
    return context.part(step, part) != part


def _reads(names: tuple[str, ...], key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in names)


def _by_rule(context: Context, key: str, parts: list[str]) -> Problem | None:
    for depth in range(len(parts) - 1, 0, -1):
        node_key = ".".join(parts[:depth])
        node = context.get(node_key)
        for place, names, unread, why in RULES:
            if isinstance(node, dict) and place == label(node_key) and parts[depth] in names and unread(context, node_key, node):
                found, _, do = why.partition("|")
                return Problem(key, found, do=do)
    return None

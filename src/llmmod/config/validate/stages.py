"""The rules of single stages: training on preferences (dpo, kto), and on a model's own completions (ppo, grpo).

trl (1.16) would refuse most contradictions of dpo and kto too, but only once a model is loaded and its trainer is built.

A reward must name one source of scores. A rollout samples from the current policy, and reads its prompts again. Arguments about groups
must fit together. Some arguments of trl's GRPO are refused, since llmmod computes that part itself.
"""

from __future__ import annotations

from ast import AsyncFunctionDef
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmmod.config.schema.steps import EvaluateConf, TrainConf
from llmmod.config.schema.training import LOSSES, SOURCES, WITH_DIVERGENCE, reward_nodes, unfit
from llmmod.config.signature import called, required
from llmmod.config.step_parts import Context
from llmmod.config.validate.pipeline import holds_out
from llmmod.distributed import expected_processes
from llmmod.errors import ConfigError, Problem, did_you_mean
from llmmod.files.paths import resolve_path
from llmmod.instantiate import import_own

_SORTED = ("aot", "aot_unpaired")  # these sort the pairs of a batch
_READ_SMOOTHING = ("exo_pair", "robust", *_SORTED)
_HOW = "Allowed: {path: a reward model's directory}, {step: an earlier step}, {_target_: a function}, or several of these by name"
_OWN = "llmmod samples the answers itself, with the model that is trained"
# field -> why it can't be set
REFUSED: Mapping[str, str] = {
    "use_vllm": _OWN,
    "use_transformers_continuous_batching": _OWN,
    "use_transformers_paged": _OWN,
    "sync_ref_model": "the reference shares weights with the model that is trained, and keeps its initial state",
    "cast_lm_head_to_fp32": "finetune.upcast_head does that",
    "use_liger_kernel": "its kernels replace the head that computes log-probabilities",
    "neftune_noise_alpha": "an answer's probability would differ from the one at sampling",
    "auto_find_batch_size": "a smaller batch would separate the answers to a prompt",
    "router_aux_loss_coef": "grpo doesn't use that loss",
    "log_completions_hub_repo": "a run doesn't upload anything",
}
_NEEDED = ("num_generations", "max_completion_length")
_GROUPED = ("group_by_length", "batch_rebalance")


def check_preferences(context: Context) -> Iterator[Problem]:
    """A problem for each contradiction."""
    for step in context.steps:
        place = context.part(step, "training")
        training = context.get(place) or {}
        if context.step_type(step) is not TrainConf:
            continue
        if isinstance(training.get("loss_type"), list) and "discopop_tau" in training:
            yield from _dpo_losses(place, training)
        if "desirable_weight" in training:
            yield from _kto(place, training)
        if "precompute_ref_log_probs" in training:
            yield from _reference(context, step, place, training)


def losses(training: Mapping[str, Any]) -> list[str]:
    """The losses of a training whose `loss_type` may name several, else an empty list."""
    found = training.get("loss_type")
    return found if isinstance(found, list) else []


def reads_smoothing(training: Mapping[str, Any]) -> bool:
    """Whether a loss of a training uses `label_smoothing`."""
    return any(name in _READ_SMOOTHING for name in losses(training))


def _dpo_losses(place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    chosen, weights, smoothing = losses(training), training.get("loss_weights"), training.get("label_smoothing") or 0
    if not chosen:
        yield Problem(f"{place}.loss_type", "is empty", f"Allowed: {', '.join(LOSSES)}")
    if weights is not None and len(weights) != len(chosen):
        found = f"{len(weights)} for {len(chosen)} losses"
        yield Problem(f"{place}.loss_weights", found, do=f"Give one for each of: {', '.join(chosen)}")
    if training.get("beta") == 0:
        yield Problem(f"{place}.beta", "0, with which nothing is learned", "Allowed: above 0")
    if "exo_pair" in chosen and smoothing == 0:
        yield Problem(f"{place}.label_smoothing", "0, but the loss exo_pair takes its logarithm", do="Set it; its paper uses 1e-3")
    if "robust" in chosen and smoothing >= 0.5:
        yield Problem(f"{place}.label_smoothing", f"found {smoothing:g} with the loss robust", "Allowed: 0 or more and below 0.5")
    if training.get("use_weighting") and (odd := [name for name in chosen if name in (*_SORTED, "sft")]):
        found = f"true, but the loss {' and '.join(odd)} doesn't have a weight for each pair"
        yield Problem(f"{place}.use_weighting", found, do="Set it to false, or choose another loss")
    divergence = training.get("f_divergence_type")
    if divergence not in (None, "reverse_kl") and (odd := [name for name in chosen if name not in WITH_DIVERGENCE]):
        found = f"{divergence}, but the loss {' and '.join(odd)} exists only for reverse_kl"
        yield Problem(f"{place}.f_divergence_type", found, do=f"Set it to reverse_kl, or choose among {', '.join(WITH_DIVERGENCE)}")


def _kto(place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of kto's arguments; its loss `kto` needs mismatched pairs, which are made from each batch."""
    if training.get("beta") == 0:
        yield Problem(f"{place}.beta", "0, with which nothing is learned", "Allowed: above 0")
    if training.get("desirable_weight") == training.get("undesirable_weight") == 0:
        found = f"0 like {place}.undesirable_weight, with which nothing is learned"
        yield Problem(f"{place}.desirable_weight", found, do="Set one of them above 0")
    if training.get("loss_type") != "kto":
        return
    do = f"or set {place}.loss_type=apo_zero_unpaired, which doesn't need them"
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if training.get(name) == 1:
            found = "1, but the loss kto needs mismatched pairs, which are made within a batch"
            yield Problem(f"{place}.{name}", found, do=f"Set it to 2 or more, {do}")
    if training.get("precompute_ref_log_probs"):
        found = "true, but the loss kto needs mismatched pairs, which are made during training"
        yield Problem(f"{place}.precompute_ref_log_probs", found, do=f"Set it to false, {do}")


def _reference(context: Context, step: str, place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    known, synced = training["precompute_ref_log_probs"], training.get("sync_ref_model")
    model, dataset, finetune = (context.part(step, part) for part in ("model", "dataset", "finetune"))
    if known and context.get(f"{dataset}.streaming"):
        found = f"true with {dataset}.streaming=true, but a stream may be endless"
        yield Problem(f"{place}.precompute_ref_log_probs", found, do="Set one of them to false")
    if known and context.get(f"{model}.shift_attn"):
        found = f"true with {model}.shift_attn=true, which is only used in training"
        yield Problem(f"{place}.precompute_ref_log_probs", found, do="Set one of them to false")
    if synced and known:
        yield Problem(f"{place}.sync_ref_model", f"true with {place}.precompute_ref_log_probs=true", do="Set one of them to false")
    if synced and context.get(f"{finetune}.name") in ("lora", "qlora"):
        found = f"true with finetune={context.get(f'{finetune}.name')}, whose reference is the model without the adapter"
        yield Problem(f"{place}.sync_ref_model", found, do="Set it to false, or use finetune=full")


def check_rewards(context: Context) -> Iterator[Problem]:
    """A problem for each reward of a training that can't score."""
    for step in context.steps:
        place = context.part(step, "training")
        training = context.get(place)
        conf = training.get("reward") if isinstance(training, dict) else None
        if context.trains(step) and isinstance(conf, Mapping):
            yield from _check_reward(context, step, f"{place}.reward", conf)
            yield from _check_weights(f"{place}.reward_weights", training.get("reward_weights") or {}, conf)


def _check_reward(context: Context, step: str, key: str, conf: Mapping[str, Any]) -> Iterator[Problem]:
    given = {name: node for name, node in conf.items() if node is not None}
    alone = any(source in given for source in SOURCES)
    if not alone and not all(isinstance(node, Mapping) for node in given.values()):
        yield Problem(key, f"found {given}", _HOW)
        return
    nodes = reward_nodes(conf)
    if not nodes:
        yield Problem(key, "every reward is null, so all answers score the same", _HOW)
    for name, node in nodes.items():
        own = key if alone else f"{key}.{name}"
        sources = [source for source in SOURCES if node.get(source) is not None]
        others = [field for field in node if field not in SOURCES]
        if len(sources) != 1 or (others and sources != ["_target_"]):
            yield Problem(own, f"found {node}", _HOW)
        elif sources == ["step"]:
            yield from _check_step(context, step, f"{own}.step", str(node["step"]))
        elif sources == ["path"] and not context.smoke:
            yield from _check_path(f"{own}.path", str(node["path"]))
        elif sources == ["_target_"]:
            yield from _check_function(f"{own}._target_", node)


def _check_step(context: Context, step: str, key: str, named: str) -> Iterator[Problem]:
    heads = {name: context.head(name) for name in context.training_steps_before(step)}
    rewards = [name for name, head in heads.items() if head == "reward"]
    if named in heads and named not in rewards:
        yield Problem(key, f"{named} trains a language model, not a reward model", did_you_mean(named, rewards) if rewards else "")
    elif named not in heads:
        allowed = did_you_mean(named, rewards) if rewards else ""
        do = "" if rewards else "Put a step with stage=rm before it, or give training.reward.path"
        yield Problem(key, f"'{named}' is not a training step before {step}", allowed, do)


def _check_path(key: str, path: str) -> Iterator[Problem]:
    try:
        found = resolve_path(path, key=key)
    except ConfigError as error:
        yield from error.problems
        return
    if isinstance(found, Path) and not any((found / name).is_file() for name in ("adapter_config.json", "config.json")):
        yield Problem(key, f"{found} contains neither a model nor an adapter", do="Give the output of stage=rm: <run>/train")
    elif isinstance(found, Path):
        problem = import_own("llmmod.models.loading.stage_file.wrong_head")(path, found, wanted="reward", key=key)
        yield from [problem] if problem is not None else []
    elif path.startswith((".", "/", "~")) or path.count("/") != 1:
        yield Problem(key, f"{path} is not a directory", do="Give the output of stage=rm: <run>/train")


def _check_function(key: str, node: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem found in the function's source; `llmmod.trainers.online.rewards` checks the imported function again."""
    function = called(str(node["_target_"]))
    if function is not None:
        needed = [name for name in required(function) if name not in node]
        problem = unfit(key, str(node["_target_"]), awaited=isinstance(function, AsyncFunctionDef), required=needed)
        yield from [problem] if problem is not None else []


def _check_weights(key: str, weights: Mapping[str, Any], conf: Mapping[str, Any]) -> Iterator[Problem]:
    if all(node is None or isinstance(node, Mapping) or name in SOURCES for name, node in conf.items()):
        names = reward_nodes(conf)
        yield from (Problem(f"{key}.{name}", "not a reward", did_you_mean(name, names)) for name in weights if name not in names)


def check_rollouts(context: Context) -> Iterator[Problem]:
    """A problem for each such training with LongLoRA's attention, a streamed dataset, or stop strings with a mask that trl gets wrong."""
    for step in context.steps:
        training = context.get(context.part(step, "training")) or {}
        if not context.trains(step) or training.get("data_kind") != "prompt":
            continue
        model, dataset = context.part(step, "model"), context.part(step, "dataset")
        if context.get(f"{model}.shift_attn"):
            found = "true, but answers are sampled without it, so their probabilities would differ"
            yield Problem(f"{model}.shift_attn", found, do="Set it to false")
        if context.get(f"{dataset}.streaming"):
            yield Problem(f"{dataset}.streaming", f"true, but {training.get('stage')} reads its prompts again", do="Set it to false")
        strings, conf = (training.get("generation_kwargs") or {}).get("stop_strings"), context.part(step, "training")
        if strings and training.get("mask_truncated_completions"):
            found = "true, but trl treats an answer that ends with a stop string (training.generation_kwargs.stop_strings) as truncated"
            yield Problem(f"{conf}.mask_truncated_completions", found, do="Set it to false")


def check_groups(context: Context) -> Iterator[Problem]:
    """A problem for each contradiction, once for all steps with the same arguments."""
    yield from {problem.key: problem for problem in _contradictions(context)}.values()


def _contradictions(context: Context) -> Iterator[Problem]:
    for step in context.steps:
        place = context.part(step, "training")
        training = context.get(place) or {}
        if "num_generations" not in training or context.step_type(step) not in (TrainConf, EvaluateConf):
            continue
        yield from _check_refused(place, training)
        yield from _check_sizes(context, step, place, training)


def _check_refused(place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    for name, why in REFUSED.items():
        if training.get(name):
            neutral = "false" if training[name] is True else "null"
            yield Problem(f"{place}.{name}", f"{_shown(training[name])}, but {why}", do=f"Set it to {neutral}")
    yield from (Problem(f"{place}.{name}", "null", "Allowed: a number") for name in _NEEDED if training.get(name) is None)
    if training.get("train_sampling_strategy") in _GROUPED:
        found = f"{training['train_sampling_strategy']}, but the lengths of a prompt's answers are unknown before they are sampled"
        yield Problem(f"{place}.train_sampling_strategy", found, "Allowed: random, sequential")


def _check_sizes(context: Context, step: str, place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of batches that don't contain whole groups; a rehearsal has its own sizes, so the run's are checked here."""
    processes = expected_processes(context.get("distributed") or {}, use_cpu=bool(training.get("use_cpu")))
    answers, rows = training.get("num_generations") or 0, (training.get("per_device_train_batch_size") or 0) * processes
    whole, times = training.get("generation_batch_size"), training.get("steps_per_generation")
    if whole and times:
        yield Problem(f"{place}.steps_per_generation", f"{times}, but generation_batch_size={whole} sets it too", do="Keep one of them")
    if not answers or not rows:
        return
    if whole and whole % rows:
        yield Problem(f"{place}.generation_batch_size", f"{whole} answers, in micro-batches of {rows}", f"Allowed: multiples of {rows}")
    elif (sampled := whole or rows * (times or training.get("gradient_accumulation_steps") or 1)) % answers:
        found = f"{answers} answers to a prompt, but {sampled} are sampled at once"
        do = f"Set {place}.per_device_train_batch_size or gradient_accumulation_steps so that {answers} divides {sampled}"
        yield Problem(f"{place}.num_generations", found, do=do)
    held_out = (training.get("per_device_eval_batch_size") or 0) * processes
    each = training.get("num_generations_eval") or answers
    if held_out % each and holds_out(context, context.part(step, "dataset")):
        found = f"{held_out} answers in all processes, but {each} to each prompt"
        yield Problem(f"{place}.per_device_eval_batch_size", found, f"Allowed: multiples of {each}")


def _shown(value: Any) -> str:
    return "true" if value is True else str(value)

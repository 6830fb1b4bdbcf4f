"""Arguments of training on groups of answers (stage=grpo) that don't go together, or that trl has and llmmod doesn't follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmmod.errors import Problem
from llmmod.ranks import world_size
from llmmod.schema.step.evaluate import EvaluateConf
from llmmod.schema.step.train import TrainConf
from llmmod.schema.validate.context import Context
from llmmod.schema.validate.pipeline import holds_out

_OWN = "llmmod's own sampling answers, with the model that is trained"
# field -> why it can't be true, or anything
REFUSED: Mapping[str, str] = {
    "use_vllm": _OWN,
    "use_transformers_continuous_batching": _OWN,
    "use_transformers_paged": _OWN,
    "sync_ref_model": "the reference shares what it can with the model that is trained, and stays where that began",
    "cast_lm_head_to_fp32": "finetune.upcast_head does that",
    "use_liger_kernel": "its kernels take the place of the head that log-probabilities are taken from",
    "neftune_noise_alpha": "an answer's probability would differ from when it was sampled",
    "auto_find_batch_size": "a smaller batch would tear a prompt's answers apart",
    "router_aux_loss_coef": "grpo doesn't learn from that loss",
    "log_completions_hub_repo": "a run uploads nothing",
}
_NEEDED = ("num_generations", "max_completion_length")
_GROUPED = ("group_by_length", "batch_rebalance")


def check_groups(context: Context) -> Iterator[Problem]:
    """A problem for each contradiction, once for all steps that go by the same arguments."""
    yield from {problem.key: problem for problem in _of_all(context)}.values()


def _of_all(context: Context) -> Iterator[Problem]:
    for step in context.steps:
        place = context.part(step, "training")
        training = context.get(place) or {}
        if "num_generations" not in training or context.step_type(step) not in (TrainConf, EvaluateConf):
            continue
        yield from _refused(place, training)
        yield from _sizes(context, step, place, training)


def _refused(place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    for name, why in REFUSED.items():
        if training.get(name):
            neutral = "false" if training[name] is True else "null"
            yield Problem(f"{place}.{name}", f"{_shown(training[name])}, and {why}", do=f"Set it to {neutral}")
    yield from (Problem(f"{place}.{name}", "null", "Allowed: a number") for name in _NEEDED if training.get(name) is None)
    if training.get("train_sampling_strategy") in _GROUPED:
        found = f"{training['train_sampling_strategy']}, and a prompt's answers have no length before they are sampled"
        yield Problem(f"{place}.train_sampling_strategy", found, "Allowed: random, sequential")


def _sizes(context: Context, step: str, place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    """Each batch of answers holds whole groups; a rehearsal has sizes of its own, and is to tell whether those of the run will do."""
    answers, rows = training.get("num_generations") or 0, (training.get("per_device_train_batch_size") or 0) * world_size()
    whole, times = training.get("generation_batch_size"), training.get("steps_per_generation")
    if whole and times:
        yield Problem(f"{place}.steps_per_generation", f"{times}, and generation_batch_size={whole} says so too", do="Keep one of them")
    if not answers or not rows:
        return
    if whole and whole % rows:
        yield Problem(f"{place}.generation_batch_size", f"{whole} answers, in micro-batches of {rows}", f"Allowed: multiples of {rows}")
    elif (sampled := whole or rows * (times or training.get("gradient_accumulation_steps") or 1)) % answers:
        found = f"{answers} answers to a prompt, and {sampled} are sampled at once"
        do = f"Set {place}.per_device_train_batch_size or gradient_accumulation_steps so that they divide"
        yield Problem(f"{place}.num_generations", found, do=do)
    held_out = (training.get("per_device_eval_batch_size") or 0) * world_size()
    each = training.get("num_generations_eval") or answers
    if held_out % each and holds_out(context, context.part(step, "dataset")):
        found = f"{held_out} answers in all processes, and {each} to each prompt"
        yield Problem(f"{place}.per_device_eval_batch_size", found, f"Allowed: multiples of {each}")


def _shown(value: Any) -> str:
    return "true" if value is True else str(value)

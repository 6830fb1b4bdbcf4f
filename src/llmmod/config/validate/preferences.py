"""Arguments of training on preferences that don't go together; most of it trl (1.16) would say once its trainer is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmmod.config.schema.preference_training import LOSSES, WITH_DIVERGENCE
from llmmod.config.schema.steps import TrainConf
from llmmod.config.validate.context import Context
from llmmod.errors import Problem

_SORTED = ("aot", "aot_unpaired")  # these sort the pairs of a batch
_SMOOTHED = ("exo_pair", "robust", *_SORTED)


def check_preferences(context: Context) -> Iterator[Problem]:
    """A problem for each contradiction."""
    for step in context.steps:
        place = context.part(step, "training")
        training = context.get(place) or {}
        if context.step_type(step) is not TrainConf:
            continue
        if isinstance(training.get("loss_type"), list) and "discopop_tau" in training:
            yield from _losses(place, training)
        if "desirable_weight" in training:
            yield from _judged(place, training)
        if "precompute_ref_log_probs" in training:
            yield from _reference(context, step, place, training)


def losses(training: Mapping[str, Any]) -> list[str]:
    """The losses of a training that has several, nothing elsewhere."""
    found = training.get("loss_type")
    return found if isinstance(found, list) else []


def reads_smoothing(training: Mapping[str, Any]) -> bool:
    """Whether a loss of a training goes by `label_smoothing`."""
    return any(name in _SMOOTHED for name in losses(training))


def _losses(place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    chosen, weights, smoothing = losses(training), training.get("loss_weights"), training.get("label_smoothing") or 0
    if not chosen:
        yield Problem(f"{place}.loss_type", "none", f"Allowed: {', '.join(LOSSES)}")
    if weights is not None and len(weights) != len(chosen):
        found = f"{len(weights)} for {len(chosen)} losses"
        yield Problem(f"{place}.loss_weights", found, do=f"Give one for each of: {', '.join(chosen)}")
    if training.get("beta") == 0:
        yield Problem(f"{place}.beta", "0, with which nothing is learned", "Allowed: above 0")
    if "exo_pair" in chosen and smoothing == 0:
        yield Problem(f"{place}.label_smoothing", "0, and the loss exo_pair takes its logarithm", do="Set it; its paper takes 1e-3")
    if "robust" in chosen and smoothing >= 0.5:
        yield Problem(f"{place}.label_smoothing", f"found {smoothing:g} with the loss robust", "Allowed: 0 or more and below 0.5")
    if training.get("use_weighting") and (odd := [name for name in chosen if name in (*_SORTED, "sft")]):
        found = f"true with the loss {' and '.join(odd)}, which has no weight for each pair"
        yield Problem(f"{place}.use_weighting", found, do="Set it to false, or choose another loss")
    divergence = training.get("f_divergence_type")
    if divergence not in (None, "reverse_kl") and (odd := [name for name in chosen if name not in WITH_DIVERGENCE]):
        found = f"{divergence} with the loss {' and '.join(odd)}, which there is for reverse_kl alone"
        yield Problem(f"{place}.f_divergence_type", found, do=f"Set it to reverse_kl, or choose among {', '.join(WITH_DIVERGENCE)}")


def _judged(place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    """What kto's arguments can't be together; its loss `kto` takes mismatched pairs that are made of each batch."""
    if training.get("beta") == 0:
        yield Problem(f"{place}.beta", "0, with which nothing is learned", "Allowed: above 0")
    if training.get("desirable_weight") == training.get("undesirable_weight") == 0:
        yield Problem(f"{place}.desirable_weight", f"0 as {place}.undesirable_weight, and nothing is learned", do="Set one of them above 0")
    if training.get("loss_type") != "kto":
        return
    do = f"or set {place}.loss_type=apo_zero_unpaired, which needs none"
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if training.get(name) == 1:
            found = "1, and the loss kto takes mismatched pairs, which are made within a batch"
            yield Problem(f"{place}.{name}", found, do=f"Set it to 2 or more, {do}")
    if training.get("precompute_ref_log_probs"):
        found = "true, and the loss kto takes mismatched pairs, which are made in training"
        yield Problem(f"{place}.precompute_ref_log_probs", found, do=f"Set it to false, {do}")


def _reference(context: Context, step: str, place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    known, synced = training["precompute_ref_log_probs"], training.get("sync_ref_model")
    model, dataset, finetune = (context.part(step, part) for part in ("model", "dataset", "finetune"))
    if known and context.get(f"{dataset}.streaming"):
        found = f"true with {dataset}.streaming=true, whose examples have no end"
        yield Problem(f"{place}.precompute_ref_log_probs", found, do="Set one of them to false")
    if known and context.get(f"{model}.shift_attn"):
        found = f"true with {model}.shift_attn=true, which is for training alone"
        yield Problem(f"{place}.precompute_ref_log_probs", found, do="Set one of them to false")
    if synced and known:
        yield Problem(f"{place}.sync_ref_model", f"true with {place}.precompute_ref_log_probs=true", do="Set one of them to false")
    if synced and context.get(f"{finetune}.name") in ("lora", "qlora"):
        found = f"true with finetune={context.get(f'{finetune}.name')}, whose reference is the model without the adapter"
        yield Problem(f"{place}.sync_ref_model", found, do="Set it to false, or use finetune=full")
    if synced and training.get("resume_from_checkpoint"):
        found = f"set with {place}.sync_ref_model=true, whose reference is in no checkpoint"
        yield Problem(f"{place}.resume_from_checkpoint", found, do="Begin anew")

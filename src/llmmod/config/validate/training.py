"""Values of a step that are valid one by one but contradict each other.

First the rules for every training, then those for training on preferences (dpo, kto, rm). trl (1.16) would refuse most of the latter
too, but only once a model is loaded and its trainer is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmmod.config.schema.steps import ChatConf, TrainConf
from llmmod.config.schema.training import LOSSES, WITH_DIVERGENCE
from llmmod.config.step_parts import Context
from llmmod.config.validate.pipeline import holds_out
from llmmod.config.validate.values import CHOICES
from llmmod.config.wording import shown
from llmmod.errors import Problem

_HUB = {"cache_dir": "hub.cache_dir", "token": "hub.token", "proxies": "hub.proxies", "local_files_only": "hub.offline"}
_CODE = {"revision": "model.revision", "trust_remote_code": "model.trust_remote_code"}
# Arguments of from_pretrained with a key of their own, whose values are passed to from_pretrained too.
OWN_KEYS: Mapping[str, Mapping[str, str]] = {
    "model": _HUB | _CODE | {
        "dtype": "model.dtype", "torch_dtype": "model.dtype", "device_map": "model.device_map", "gguf_file": "model.gguf_file",
        "attn_implementation": "model.attn_implementation", "quantization_config": "model.quantization.bits",
        "load_in_4bit": "model.quantization.bits=4", "load_in_8bit": "model.quantization.bits=8",
    },
    "tokenizer": _HUB | _CODE | {"gguf_file": "model.gguf_file"},
}  # fmt: skip
_SORTED = ("aot", "aot_unpaired")  # these sort the pairs of a batch
_READ_SMOOTHING = ("exo_pair", "robust", *_SORTED)


def check_contradictions(context: Context) -> Iterator[Problem]:
    """A problem for each contradiction."""
    for step in context.steps:
        if context.trains(step):
            yield from _quantized(context, step)
            yield from _shifted_attention(context, step)
        elif context.step_type(step) is ChatConf:
            yield from _scores_only(context, step)
    for part, own in OWN_KEYS.items():
        for place in context.places(part):
            given = context.get(f"{place}.kwargs") or {}
            yield from (Problem(f"{place}.kwargs.{name}", "has a key of its own", do=f"Set {own[name]}") for name in given if name in own)
    for place in context.places("model"):
        yield from _rope(context, place)
    for place in context.places("finetune"):
        yield from _adapters(context, place)
    for place in context.places("training"):
        yield from _training(context, place)
    for place in context.places("dataset"):
        yield from _dataset(context, place)
    yield from _generation(context)


def _quantized(context: Context, step: str) -> Iterator[Problem]:
    model, finetune = context.part(step, "model"), context.part(step, "finetune")
    bits, name = context.get(f"{model}.quantization.bits"), context.get(f"{finetune}.name")
    if name == "qlora" and bits is None:
        found = "null, but finetune=qlora trains adapters on quantized weights"
        yield Problem(f"{model}.quantization.bits", found, "Allowed: 4, 8", "For weights that are not quantized, use finetune=lora")
    elif bits is not None and name in ("full", "freeze"):
        found = f"{bits} with finetune={name}, but quantized weights can't be trained"
        yield Problem(f"{model}.quantization.bits", found, do="Use finetune=qlora, or set it to null")


def _scores_only(context: Context, step: str) -> Iterator[Problem]:
    training = context.part(step, "training")
    if context.get(f"{training}.head") == "reward":
        found = f"has {step}, but the model of {training}.stage={context.get(f'{training}.stage')} gives scores and can't generate text"
        yield Problem("pipeline", found, do=f"Leave {step} out; predict writes the scores")


def _shifted_attention(context: Context, step: str) -> Iterator[Problem]:
    model, dataset = context.part(step, "model"), context.part(step, "dataset")
    attention = context.get(f"{model}.attn_implementation")
    if not context.get(f"{model}.shift_attn"):
        return
    if context.get(f"{dataset}.packing"):
        found = f"true with {model}.shift_attn=true, which groups the tokens of a row and ignores the examples in it"
        yield Problem(f"{dataset}.packing", found, do="Set one of them to false")
    if attention not in (None, "sdpa"):
        found = f"{attention} with {model}.shift_attn=true"
        yield Problem(f"{model}.attn_implementation", found, "Allowed: sdpa, null")


def _rope(context: Context, place: str) -> Iterator[Problem]:
    scaling = context.get(f"{place}.rope_scaling") or {}
    known = scaling.get("type") in CHOICES["model.rope_scaling", "type"]
    if known and not scaling.get("factor") and not context.get(f"{place}.model_max_length"):
        do = f"Set it, or {place}.model_max_length, from which it is computed"
        yield Problem(f"{place}.rope_scaling.factor", f"not set, and {place}.rope_scaling.type is {scaling['type']}", do=do)


def _adapters(context: Context, place: str) -> Iterator[Problem]:
    if context.get(f"{place}.resume_adapter") and not context.get(f"{place}.adapters"):
        do = f"Name it: '{place}.adapters=[path]'"
        yield Problem(f"{place}.resume_adapter", "true, but finetune.adapters is empty", do=do)


def _training(context: Context, place: str) -> Iterator[Problem]:
    training = context.get(place) or {}
    evaluates, saves = training.get("eval_strategy"), training.get("save_strategy")
    if training.get("bf16") and training.get("fp16"):
        yield Problem(f"{place}.fp16", f"true, but {place}.bf16 is true as well", do="Keep one of them")
    if training.get("load_best_model_at_end"):
        if evaluates == "no":
            found = f"true with {place}.eval_strategy=no"
            yield Problem(f"{place}.load_best_model_at_end", found, do="Set eval_strategy to steps or epoch")
        elif saves not in ("best", evaluates):
            found = f"true, but {place}.save_strategy={saves} is not {place}.eval_strategy={evaluates}"
            yield Problem(f"{place}.load_best_model_at_end", found, do=f"Set save_strategy={evaluates}")


def _dataset(context: Context, place: str) -> Iterator[Problem]:
    dataset = context.get(place) or {}
    ways = [name for name in ("val_size", "val_files", "val_split") if dataset.get(name)]
    if len(ways) > 1:
        own = next((name for name in ways if context.user_set(f"{place}.{name}")), ways[0])
        others = " and ".join(f"{place}.{name}={shown(dataset[name])}" for name in ways if name != own)
        neutral = ", ".join(f"{name}={'0' if name == 'val_size' else 'null'}" for name in ways if name != own)
        yield Problem(f"{place}.{own}", f"set, but {others} holds out examples too", do=f"Keep one of them: {neutral}")
    if dataset.get("streaming") and isinstance(dataset.get("val_size"), float) and 0 < dataset["val_size"] < 1:
        found = f"{dataset['val_size']:g} is a fraction, but the length of a streamed dataset is unknown"
        yield Problem(f"{place}.val_size", found, do="Give a number of examples, or val_files")
    if dataset.get("streaming"):
        yield from _unknown_length(context, place)


def _unknown_length(context: Context, place: str) -> Iterator[Problem]:
    for step in context.steps:
        training = context.part(step, "training")
        trains = context.trains(step) and context.part(step, "dataset") == place
        if trains and (context.get(f"{training}.max_steps") or -1) < 1:
            found = "not set, but the length of a streamed dataset is unknown, so a number of epochs is not enough"
            yield Problem(f"{training}.max_steps", found, do="Set it")


def _generation(context: Context) -> Iterator[Problem]:
    generation = context.get("generation") or {}
    least, most = generation.get("min_new_tokens"), generation.get("max_new_tokens")
    if least is not None and most is not None and least > most:
        yield Problem("generation.min_new_tokens", f"{least} is more than generation.max_new_tokens={most}")


def without_dropout(context: Context, finetune: str) -> bool:
    """Whether every training with this `finetune` disables all dropout of the model, as trl does for preferences."""
    trainings = [
        context.part(step, "training") for step in context.steps if context.trains(step) and context.part(step, "finetune") == finetune
    ]
    return bool(trainings) and all(context.get(f"{training}.disable_dropout") for training in trainings)


def evaluates_nothing(context: Context, training: str) -> bool:
    """Whether every training step with these arguments has no held-out examples to evaluate on."""
    steps = [s for s in context.steps if context.trains(s) and context.part(s, "training") == training]
    return bool(steps) and not any(holds_out(context, context.part(step, "dataset")) for step in steps)


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

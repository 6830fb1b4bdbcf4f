"""Settings of low-rank adapters that don't work: peft refuses them only once a model is loaded, or ignores them silently."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmmod.code_arguments import find_module
from llmmod.config.step_parts import Context
from llmmod.config.wording import shown
from llmmod.errors import Problem

# Initialisations that are computed from the weights, and change them.
_BASE_CHANGING = ("pissa", "olora", "loftq")
# Initialisations that peft computes from examples, in a pass over the data that a run doesn't make.
_DATA_DRIVEN = ("eva", "corda", "lora_ga")
# Fields of adapters that a plain model can't store once they are merged -> why; such an adapter can't be exported or be one of a chain.
NOT_MERGED = {
    "alora_invocation_tokens": "such an adapter is off until these tokens come, which merged weights can't be",
    "layer_replication": "layers that share weights would get different adapters, which a saved model can't store",
    "arrow_config": "it chooses among several adapters for each token, but a run has one",
}
_PEFT_WRITES = "peft writes it itself"
_NEEDS_DATA = "its initial values need a pass over examples, which llmmod doesn't make"
# field -> the only values that work all the way (train, save, load, export), and why others don't; tests/models/adapters/test_fields.py
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    **{name: ((None,), why) for name, why in NOT_MERGED.items()},
    "lora_bias": ((False,), "an export can't store a bias in layers without one"),
    "task_type": (("CAUSAL_LM",), "language models are trained here; stage=rm says itself what it needs"),
    "peft_type": ((None, "LORA"), "finetune=lora is LoRA"),
    "inference_mode": ((False,), "nothing would be trained"),
    "fan_in_fan_out": ((False,), "peft sees on each layer how its weight is stored"),
    "use_qalora": ((False,), "it only works with GPTQ weights (peft 0.21)"),
    "qalora_group_size": ((16,), "only use_qalora reads it, which only works with GPTQ weights (peft 0.21)"),
    "megatron_config": ((None,), "llmmod doesn't use Megatron's layers"),
    "megatron_core": (("megatron.core",), "llmmod doesn't use Megatron's layers"),
    "revision": ((None,), "peft writes it itself, from model.revision"),
    **dict.fromkeys(("auto_mapping", "peft_version", "base_model_name_or_path"), ((None,), _PEFT_WRITES)),
    **dict.fromkeys(("eva_config", "corda_config", "lora_ga_config"), ((None,), _NEEDS_DATA)),
}
_PACKAGES = {"scipy": "peft asks for it", "bitsandbytes": "it rounds the weights"}
# Names of heads that `model.lora_targets` or a user may give, and the stages whose loss multiplies by the head's weight itself (trl 1.16).
_HEADS = ("lm_head", "output_layer", "embed_out")
_FUSED = ("pt", "sft", "dpo", "kto", "ppo", "grpo")


def check_low_rank(context: Context) -> Iterator[Problem]:
    """A problem for each contradiction within the `finetune.*` of a training step, and between it and the model's or the stage's."""
    seen = set()
    for step in (step for step in context.steps if context.trains(step)):
        place, model, training = (context.part(step, part) for part in ("finetune", "model", "training"))
        conf = context.get(place) or {}
        if "init_lora_weights" not in conf or (place, model, training) in seen:
            continue
        seen.add((place, model, training))
        yield from _check_fixed(place, conf)
        yield from _check_init(place, conf)
        yield from _check_layers(place, conf)
        yield from _check_dora(place, conf)
        yield from _check_quantized(place, conf, f"{model}.quantization.bits", context.get(f"{model}.quantization.bits"))
        if context.get(f"{training}.stage") in _FUSED:
            yield from _check_head(place, conf)


def _check_fixed(place: str, conf: dict[str, Any]) -> Iterator[Problem]:
    for name, (values, why) in FIXED.items():
        if name in conf and conf[name] not in values:
            yield Problem(f"{place}.{name}", f"{shown(conf[name])}, but {why}", do=f"Leave it {shown(values[0])}")


def _check_init(place: str, conf: dict[str, Any]) -> Iterator[Problem]:
    init, key = conf["init_lora_weights"], f"{place}.init_lora_weights"
    if init in _DATA_DRIVEN:
        yield Problem(key, f"'{init}' needs a pass over examples, which llmmod doesn't make", do="Use pissa or olora")
    if init == "loftq":
        for package, why in _PACKAGES.items():
            if find_module(package) is None:
                found = f"'loftq' needs {package} ({why}), which isn't installed"
                yield Problem(key, found, do="Install it: pip install 'llmmod[loftq]'")
        bits = (conf.get("loftq_config") or {}).get("loftq_bits", 4)
        if bits not in (4, 8):
            yield Problem(f"{place}.loftq_config.loftq_bits", f"found {bits}", "Allowed: 4, 8")
    if init == "orthogonal":
        ranks = {f"{place}.r": conf.get("r"), **{f"{place}.rank_pattern.{k}": v for k, v in (conf.get("rank_pattern") or {}).items()}}
        odd = {k: rank for k, rank in ranks.items() if isinstance(rank, int) and rank % 2}
        yield from (Problem(k, f"{rank}, but init_lora_weights=orthogonal needs pairs", "Allowed: even numbers") for k, rank in odd.items())


def _check_layers(place: str, conf: dict[str, Any]) -> Iterator[Problem]:
    targets, layers = conf.get("target_modules"), conf.get("layers_to_transform")
    for name in ("layers_to_transform", "layers_pattern"):
        if conf.get(name) is not None and isinstance(targets, str):
            found = f"set with {place}.target_modules={targets}, but peft selects layers only of listed modules"
            yield Problem(f"{place}.{name}", found, do=f"List them: {place}.target_modules=[q_proj,v_proj]")
    if conf.get("layers_pattern") and layers is None:
        yield Problem(f"{place}.layers_pattern", f"set, but {place}.layers_to_transform isn't", do="Set both, or neither")
    numbers = layers if isinstance(layers, list) else [layers]
    for number in (n for n in numbers if isinstance(n, int) and n < 0):
        yield Problem(f"{place}.layers_to_transform", f"found {number}", "Allowed: numbers of layers, the first is 0")


def _check_dora(place: str, conf: dict[str, Any]) -> Iterator[Problem]:
    init, dora = conf["init_lora_weights"], conf.get("use_dora")
    if dora and isinstance(init, str) and init.startswith(_BASE_CHANGING):
        found = f"true with {place}.init_lora_weights={init}, which changes the weights whose norms DoRA keeps"
        yield Problem(f"{place}.use_dora", found, do="Set one of them to its default")


def _check_quantized(place: str, conf: dict[str, Any], bits_key: str, bits: Any) -> Iterator[Problem]:
    init = conf["init_lora_weights"]
    if bits is not None and isinstance(init, str) and init.startswith(_BASE_CHANGING):
        found = f"'{init}' with {bits_key}={bits}: it changes the weights, which would have to be quantized again"
        yield Problem(f"{place}.init_lora_weights", found, do=f"Use finetune=lora with {bits_key}=null, or leave it true")
    if bits == 8 and conf.get("use_dora"):
        found = f"true with {bits_key}=8, but peft (0.21) can't compute the norm of such weights on every device"
        yield Problem(f"{place}.use_dora", found, do="Use 4 bits, or leave use_dora false")


def _check_head(place: str, conf: dict[str, Any]) -> Iterator[Problem]:
    targets = conf.get("target_modules")
    for name in (name for name in _HEADS if name in (targets if isinstance(targets, list) else [targets])):
        found = f"names {name}, but the loss is computed from the head's own weight, so an adapter on it would never be trained"
        yield Problem(f"{place}.target_modules", found, do=f"Train all of it: {place}.modules_to_save=[{name}]")

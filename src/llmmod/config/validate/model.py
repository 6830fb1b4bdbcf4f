"""Models, tokenizers and adapters: files that are missing or of the wrong kind, and settings that don't work.

The checks read names, config.json and the headers of files, before torch is imported. `llmmod.files.checkpoint` and `llmmod.models` know
the formats. The import layers put them above this module, so it imports their functions, which are pure Python, by name. peft refuses wrong
settings of low-rank adapters only once a model is loaded, or ignores them silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmmod.code_arguments import find_module
from llmmod.config.schema.base import Weights
from llmmod.config.step_parts import Context
from llmmod.config.wording import shown
from llmmod.errors import ConfigError, Problem
from llmmod.instantiate import import_own

# Implementation -> its package. If `kernels` is installed, transformers downloads either from the hub instead.
_PACKAGES = {"flash_attention_2": ("flash_attn", "flash-attn"), "flash_attention_3": ("flash_attn_interface", "flash-attn-3")}
_WITHOUT_ROTARY = ("baichuan", "bloom", "gpt2", "mpt", "opt")  # model_type; of Baichuan only 13B: 7B is converted to llama
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
_INIT_PACKAGES = {"scipy": "peft asks for it", "bitsandbytes": "it rounds the weights"}
# Names of heads that `model.lora_targets` or a user may give, and the stages whose loss multiplies by the head's weight itself (trl 1.16).
_HEADS = ("lm_head", "output_layer", "embed_out")
_FUSED = ("pt", "sft", "dpo", "kto", "ppo", "grpo")


def check_model_files(context: Context) -> Iterator[Problem]:
    """A problem for each such file. A rehearsal doesn't read weights, and reads config.json only if the option has no `architecture`."""
    for place in context.places("model"):
        model = context.get(place) or {}
        find = import_own("llmmod.files.checkpoint.path_of_size")
        path, problems = problems_of(find, model.get("pretrained_model_name_or_path"), model.get("size"), model.get("sizes") or {})
        # A step that only shows examples needs the tokenizer but not the weights.
        needed = any(context.needs_model(step) for step in context.steps if context.part(step, "model") == place)
        if isinstance(path, str) and (not context.smoke or (needed and not model.get("architecture"))):
            # An option's GGUF file doesn't belong to another path of the user's.
            belongs = context.user_set(f"{place}.gguf_file") or not context.user_set(f"{place}.pretrained_model_name_or_path")
            gguf_file = model.get("gguf_file") if belongs else None
            problems += problems_of(_check_checkpoint, model | {"gguf_file": gguf_file}, path, loaded=needed, weights=not context.smoke)[1]
            if model.get("revision") is not None and Path(path).expanduser().exists():
                found = f"not read, since '{path}' is a directory on this machine"
                problems.append(Problem("model.revision", found, do="Leave it out"))
        yield from (Problem(p.key.replace("model.", f"{place}.", 1), p.found, p.allowed, p.do) for p in problems)
    if not context.smoke:
        yield from _check_heads(context)
        yield from _check_tokenizer(context)
        for place in context.places("finetune"):
            yield from _check_adapters(place, context.get(f"{place}.adapters") or [])


def problems_of(look: Callable[..., Any], *args: Any, **named: Any) -> tuple[Any, list[Problem]]:
    """The result of `look` and an empty list, or None and the problems that it raises."""
    try:
        return look(*args, **named), []
    except ConfigError as error:
        return None, error.problems


def _check_checkpoint(model: dict[str, Any], path: str, *, loaded: bool, weights: bool) -> None:
    find = import_own("llmmod.files.checkpoint.find_checkpoint")
    checkpoint = find(path, gguf_file=model.get("gguf_file"), install=model.get("install"))
    if loaded:
        weights = weights and model.get("weights") != Weights.random
        import_own("llmmod.files.checkpoint.check_model_directory")(checkpoint, weights=weights)


def _check_tokenizer(context: Context) -> Iterator[Problem]:
    path, key = context.get("tokenizer.pretrained_model_name_or_path"), "tokenizer.pretrained_model_name_or_path"
    if isinstance(path, str) and context.places("tokenizer"):
        yield from problems_of(import_own("llmmod.files.checkpoint.find_checkpoint"), path, key=key)[1]


def _check_adapters(place: str, adapters: list[Any]) -> Iterator[Problem]:
    for number, path in enumerate(adapters):
        key = f"{place}.adapters[{number}]"
        found, problems = problems_of(import_own("llmmod.files.checkpoint.find_checkpoint"), str(path), key=key)
        yield from problems
        if found is not None and found.local and not (Path(found.path) / "adapter_config.json").is_file():
            model = (Path(found.path) / "config.json").is_file()
            do = "That is a model: give it as model.pretrained_model_name_or_path" if model else ""
            yield Problem(key, f"'{path}' is not an adapter: it doesn't have adapter_config.json", do=do)


def _check_heads(context: Context) -> Iterator[Problem]:
    """A problem for each model or adapter of another kind than a step needs, and for each adapter trained on other merged adapters."""
    wrong_head, wrong_chain = (import_own(f"llmmod.models.loading.stage_file.{name}") for name in ("wrong_head", "wrong_chain"))
    found: dict[str, Problem | None] = {}
    for step in context.steps:
        trains = context.trains(step)
        if not context.needs_model(step) or (not trains and context.followed(step) is not None):
            continue
        model, finetune = context.get(context.part(step, "model")) or {}, context.part(step, "finetune")
        path, key = model.get("pretrained_model_name_or_path"), f"{context.part(step, 'model')}.pretrained_model_name_or_path"
        if isinstance(path, str) and context.head(step) == "language":
            found[key] = wrong_head(path, Path(path).expanduser(), wanted="language", key=key)
        adapters = [str(adapter) for adapter in context.get(f"{finetune}.adapters") or []]
        for number, path in enumerate(adapters):
            goes_on = number == len(adapters) - 1 and (not trains or context.get(f"{finetune}.resume_adapter"))
            wanted, key = context.head(step) if goes_on else "language", f"{finetune}.adapters[{number}]"
            place = Path(path).expanduser()
            problem = wrong_head(path, place, wanted=wanted, key=key)
            found[key] = problem or wrong_chain(path, place, before=adapters[:number], key=key)
    yield from (problem for problem in found.values() if problem is not None)


def check_attention(context: Context) -> Iterator[Problem]:
    """A problem for each `attn_implementation` that doesn't work on this machine with any model."""
    for place in context.places("model"):
        chosen, dtype = context.get(f"{place}.attn_implementation"), context.get(f"{place}.dtype")
        if chosen not in _PACKAGES:
            continue
        module, package = _PACKAGES[chosen]
        if find_module(module) is None and find_module("kernels") is None:
            do = f"Install it: pip install {package} --no-build-isolation, or leave {place}.attn_implementation null"
            yield Problem(f"{place}.attn_implementation", f"{chosen} needs {package}, which isn't installed", do=do)
        elif dtype == "float32":
            found = f"{chosen} with {place}.dtype=float32, but its kernels compute only in 16 bits"
            yield Problem(f"{place}.attn_implementation", found, do=f"Use {place}.dtype=bfloat16, or sdpa")


def check_positions(context: Context) -> Iterator[Problem]:
    """A problem for each `rope_scaling` and `shift_attn` of a model without rotary positions; a loaded model is checked again later."""
    for place in context.places("model"):
        kind, shifted = context.get(f"{place}.rope_scaling.type"), context.get(f"{place}.shift_attn")
        if not (kind or shifted is True):
            continue
        family = _model_type(context, context.get(place) or {})
        if family in _WITHOUT_ROTARY and kind:
            found = f"'{kind}', but a model of type {family} doesn't have rotary positions to scale"
            yield Problem(f"{place}.rope_scaling.type", found, do="Leave it null")
        if family in _WITHOUT_ROTARY and shifted is True:
            found = f"true, but LongLoRA needs rotary positions, and a model of type {family} doesn't have any"
            yield Problem(f"{place}.shift_attn", found, do="Leave it false")


def _model_type(context: Context, model: Any) -> str | None:
    """The model_type of the class that loads a model option; None if it isn't known yet."""
    path, stated = model.get("pretrained_model_name_or_path"), (model.get("architecture") or {}).get("model_type")
    on_disk = None
    if isinstance(path, str) and not (context.smoke and stated):
        on_disk = import_own("llmmod.models.families.layouts.family_on_disk")(path, model.get("gguf_file"))
    return on_disk or stated


def check_trainable_dtype(context: Context) -> Iterator[Problem]:
    """A problem for each `trainable_dtype=checkpoint` without effect or in float16; an unknown dtype is checked after loading."""
    for step in (step for step in context.steps if context.trains(step)):
        place, model = context.part(step, "finetune"), context.part(step, "model")
        conf, key = context.get(place) or {}, f"{place}.trainable_dtype"
        if conf.get("trainable_dtype") != "checkpoint":
            continue
        dtype = _loaded_dtype(context, context.get(model) or {})
        if context.get(f"{model}.quantization.bits") is not None:
            yield _without_effect(key, "the weights that aren't quantized are in float32")
        elif "r" in conf and not conf.get("modules_to_save") and conf.get("bias") in (None, "none"):
            yield _without_effect(key, "only adapters are trained, which are always in float32")
        elif dtype == "float32":
            yield _without_effect(key, "the weights are in float32")
        elif dtype == "float16":
            yield Problem(
                key,
                "checkpoint, but the weights are in float16, in which Adam's epsilon is 0 and steps become huge",
                do=f"Use {key}=float32, or {model}.dtype=bfloat16",
            )


def _without_effect(key: str, why: str) -> Problem:
    return Problem(key, f"checkpoint, but {why}", do="Leave it out")


def _loaded_dtype(context: Context, model: dict[str, Any]) -> str | None:
    """The dtype in which a model's weights are loaded; None if it isn't known yet."""
    chosen, path = str(model.get("dtype")), model.get("pretrained_model_name_or_path")
    if chosen != "auto" or context.smoke or not isinstance(path, str):
        return chosen
    found: str | None = import_own("llmmod.files.checkpoint.stated_dtype")(path, model.get("gguf_file"))
    return found


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
        for package, why in _INIT_PACKAGES.items():
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

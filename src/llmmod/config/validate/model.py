"""Models, tokenizers, adapters and checkpoints: files that are missing or of the wrong kind, and settings that a model doesn't support.

The checks read names, config.json and the headers of files, before torch is imported. `llmmod.files.checkpoint`, `llmmod.models` and
`llmmod.trainers.callbacks.resume` know the formats. The import layers put them above this module, so it imports their functions, which are
pure Python, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmmod.code_arguments import find_module
from llmmod.config.schema.base import Weights
from llmmod.config.step_parts import Context
from llmmod.distributed import rank, started
from llmmod.errors import ConfigError, Problem
from llmmod.instantiate import import_own

# Implementation -> its package. If `kernels` is installed, transformers downloads either from the hub instead.
_PACKAGES = {"flash_attention_2": ("flash_attn", "flash-attn"), "flash_attention_3": ("flash_attn_interface", "flash-attn-3")}
_BY_TIME = "%Y-%m-%d_%H-%M-%S"  # the name of a run's directory if output_dir isn't set, as in conf/config.yaml
_WITHOUT_ROTARY = ("baichuan", "bloom", "gpt2", "mpt", "opt")  # model_type; of Baichuan only 13B: 7B is converted to llama


def check_model_files(context: Context) -> Iterator[Problem]:
    """A problem for each such file. A rehearsal doesn't read weights, and reads config.json only if the option has no `architecture`."""
    for place in context.places("model"):
        model = context.get(place) or {}
        find = import_own("llmmod.files.checkpoint.path_of_size")
        path, problems = _problems_of(find, model.get("pretrained_model_name_or_path"), model.get("size"), model.get("sizes") or {})
        # A step that only shows examples needs the tokenizer but not the weights.
        needed = any(context.needs_model(step) for step in context.steps if context.part(step, "model") == place)
        if isinstance(path, str) and (not context.smoke or (needed and not model.get("architecture"))):
            # An option's GGUF file doesn't belong to another path of the user's.
            belongs = context.user_set(f"{place}.gguf_file") or not context.user_set(f"{place}.pretrained_model_name_or_path")
            gguf_file = model.get("gguf_file") if belongs else None
            problems += _problems_of(_check_checkpoint, model | {"gguf_file": gguf_file}, path, loaded=needed, weights=not context.smoke)[1]
            if model.get("revision") is not None and Path(path).expanduser().exists():
                found = f"not read, since '{path}' is a directory on this machine"
                problems.append(Problem("model.revision", found, do="Leave it out"))
        yield from (Problem(p.key.replace("model.", f"{place}.", 1), p.found, p.allowed, p.do) for p in problems)
    if not context.smoke:
        yield from _check_heads(context)
        yield from _check_tokenizer(context)
        for place in context.places("finetune"):
            yield from _check_adapters(place, context.get(f"{place}.adapters") or [])
    for step in context.steps:
        if context.trains(step):
            yield from _check_resumed(context, step)


def _problems_of(look: Callable[..., Any], *args: Any, **named: Any) -> tuple[Any, list[Problem]]:
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
        yield from _problems_of(import_own("llmmod.files.checkpoint.find_checkpoint"), path, key=key)[1]


def _check_adapters(place: str, adapters: list[Any]) -> Iterator[Problem]:
    for number, path in enumerate(adapters):
        key = f"{place}.adapters[{number}]"
        found, problems = _problems_of(import_own("llmmod.files.checkpoint.find_checkpoint"), str(path), key=key)
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


def _check_resumed(context: Context, step: str) -> Iterator[Problem]:
    key = f"{context.part(step, 'training')}.resume_from_checkpoint"
    wanted, output = context.get(key), context.get("output_dir")
    newest_of_this_run = str(wanted).lower() == "true"
    if wanted is None or not isinstance(output, str) or (newest_of_this_run and context.in_sweep):
        return
    if newest_of_this_run and Path(output).name == started(_BY_TIME):
        found = "true, but without output_dir each run has a new directory, which doesn't have a checkpoint yet"
        yield Problem(key, found, do="Set output_dir to the run to continue, or set auto_resume=true instead, which finds it")
        return
    directory = Path(output).expanduser() / step
    find = import_own("llmmod.trainers.callbacks.resume.find_checkpoint")
    for problem in _problems_of(find, wanted, train_dir=directory, content=rank() == 0)[1]:
        yield Problem(key, problem.found, problem.allowed, problem.do)


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
        on_disk = import_own("llmmod.models.families.registry.family_on_disk")(path, model.get("gguf_file"))
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

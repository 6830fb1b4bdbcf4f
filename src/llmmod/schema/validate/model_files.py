"""Models, tokenizers, adapters and checkpoints that are to be read from this disk and aren't there, or aren't what they should be.

What a directory must hold, `llmmod.models.checkpoint` and `llmmod.stages.loop.resume` say, pure Python both; they are reached by name,
since what a run is made of stands below them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmmod.errors import ConfigError, Problem
from llmmod.instantiate import import_own
from llmmod.schema.base import Weights
from llmmod.schema.validate.context import Context


def check_model_files(context: Context) -> Iterator[Problem]:
    """A problem for each of them. A rehearsal reads no weights, and a config.json only where nothing else says what to rehearse."""
    for place in context.places("model"):
        model = context.get(place) or {}
        path, problems = _told(_path_of_size, model)
        needed = _needs_weights(context, place)
        if isinstance(path, str) and (not context.smoke or (needed and not model.get("architecture"))):
            gguf_file = model.get("gguf_file") if _names_gguf(context, place) else None
            problems += _told(_model, model | {"gguf_file": gguf_file}, path, loaded=needed, weights=not context.smoke)[1]
            problems += _revision(model, path)
        yield from _under(place, problems)
    if not context.smoke:
        yield from _heads(context)
        yield from _tokenizer(context)
        for place in context.places("finetune"):
            yield from _adapters(place, context.get(f"{place}.adapters") or [])
    for step in context.steps:
        if context.trains(step):
            yield from _checkpoint(context, step)


def _told(look: Callable[..., Any], *args: Any, **named: Any) -> tuple[Any, list[Problem]]:
    """What looking gives, or the problems that it raises."""
    try:
        return look(*args, **named), []
    except ConfigError as error:
        return None, error.problems


def _under(place: str, problems: list[Problem]) -> list[Problem]:
    """Problems of a root's model as those of a step's own."""
    return [Problem(p.key.replace("model.", f"{place}.", 1), p.found, p.allowed, p.do) for p in problems]


def _path_of_size(model: dict[str, Any]) -> Any:
    find = import_own("llmmod.models.checkpoint.path_of_size")
    return find(model.get("pretrained_model_name_or_path"), model.get("size"), model.get("sizes") or {})


def _names_gguf(context: Context, place: str) -> bool:
    """Whether the GGUF file that is named belongs to the path: an option's doesn't, once the user gives another path."""
    return context.user_set(f"{place}.gguf_file") or not context.user_set(f"{place}.pretrained_model_name_or_path")


def _needs_weights(context: Context, place: str) -> bool:
    """Whether a step loads the model's weights; one that only shows examples needs its tokenizer."""
    return any(context.needs_model(step) for step in context.steps if context.part(step, "model") == place)


def _model(model: dict[str, Any], path: str, *, loaded: bool, weights: bool) -> None:
    find = import_own("llmmod.models.checkpoint.find_checkpoint")
    checkpoint = find(path, gguf_file=model.get("gguf_file"), install=model.get("install"))
    if loaded:
        weights = weights and model.get("weights") != Weights.random
        import_own("llmmod.models.checkpoint.check_model_directory")(checkpoint, weights=weights)


def _revision(model: dict[str, Any], path: str) -> list[Problem]:
    if model.get("revision") is None or not Path(path).expanduser().exists():
        return []
    return [Problem("model.revision", f"not read, since '{path}' is a directory of this machine", do="Leave it out")]


def _tokenizer(context: Context) -> Iterator[Problem]:
    path, key = context.get("tokenizer.pretrained_model_name_or_path"), "tokenizer.pretrained_model_name_or_path"
    if isinstance(path, str) and context.places("tokenizer"):
        yield from _told(import_own("llmmod.models.checkpoint.find_checkpoint"), path, key=key)[1]


def _adapters(place: str, adapters: list[Any]) -> Iterator[Problem]:
    for number, path in enumerate(adapters):
        key = f"{place}.adapters[{number}]"
        found, problems = _told(import_own("llmmod.models.checkpoint.find_checkpoint"), str(path), key=key)
        yield from problems
        if found is not None and found.local and not (Path(found.path) / "adapter_config.json").is_file():
            model = (Path(found.path) / "config.json").is_file()
            do = "That is a model: give it as model.pretrained_model_name_or_path" if model else ""
            yield Problem(key, f"'{path}' is no adapter: it has no adapter_config.json", do=do)


def _heads(context: Context) -> Iterator[Problem]:
    """A model or an adapter of another kind than a step needs, and an adapter that was trained on others merged."""
    wrong_head, wrong_chain = (import_own(f"llmmod.models.stage_file.{name}") for name in ("wrong_head", "wrong_chain"))
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


def _checkpoint(context: Context, step: str) -> Iterator[Problem]:
    key = f"{context.part(step, 'training')}.resume_from_checkpoint"
    wanted, output = context.get(key), context.get("output_dir")
    newest_of_this_run = str(wanted).lower() == "true"
    if wanted is None or not isinstance(output, str) or (newest_of_this_run and context.in_sweep):
        return
    directory = Path(output).expanduser() / step
    for problem in _told(import_own("llmmod.stages.loop.resume.find_checkpoint"), wanted, train_dir=directory)[1]:
        yield Problem(key, problem.found, problem.allowed, problem.do)

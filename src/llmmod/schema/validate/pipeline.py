"""The pipeline: steps that there are, each once, and what each needs to have something to work on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from llmmod.errors import Problem, nearest
from llmmod.schema.base import Weights
from llmmod.schema.step.chat import ChatConf
from llmmod.schema.step.evaluate import EvaluateConf
from llmmod.schema.step.predict import PredictConf
from llmmod.schema.validate.context import Context
from llmmod.schema.wording import shown


def check_pipeline(context: Context) -> Iterator[Problem]:
    """A problem for each name that is no step or stands twice, and for each step that has nothing to work on."""
    names = context.get("pipeline") or []
    steps = context.get("steps") or {}
    if not names:
        yield Problem("pipeline", "no steps", f"Allowed: {', '.join(steps)}")
    for name, count in Counter(map(str, names)).items():
        if name not in steps:
            close = nearest(name, steps)
            meant = f"Did you mean '{close[0]}'? " if close else ""
            own = f"A step of your own: +step@steps.{name}=train steps.{name}._target_=…"
            do = own if not close and name.isidentifier() else ""
            yield Problem("pipeline", f"no step {shown(name)}", f"{meant}Allowed: {', '.join(steps)}", do)
        elif count > 1:
            do = f"Give the second a name of its own: +step@steps.{name}_2={context.choices.get(f'step@steps.{name}', name)}"
            yield Problem("pipeline", f"'{name}' stands in it {count} times", do=do)
    yield from _without_model(context)
    yield from _without_held_out(context)
    if context.user_set("reuse") and context.get("reuse") is True and sum(map(context.trains, context.steps)) < 2:
        yield Problem("reuse", "true, and only a run of several training steps takes what earlier runs left", do="Leave it out")


def _without_model(context: Context) -> Iterator[Problem]:
    seen = set()
    for step in context.steps:
        key = context.part(step, "model")
        model = context.get(key)
        if not isinstance(model, dict) or key in seen or not context.needs_model(step):
            continue
        path = model.get("pretrained_model_name_or_path") or model.get("size")
        random = model.get("weights") == Weights.random
        if context.smoke and (path is not None or model.get("architecture")):
            continue
        if path is None and not (random and model.get("architecture")):
            seen.add(key)
            found = f"is not set, and {step} needs a model"
            yield Problem(f"{key}.pretrained_model_name_or_path", found, do="Give a hub id or a directory")
        elif random and context.step_type(step) is ChatConf and not _has_learnt(context, step):
            seen.add(key)
            found = f"random, and no step before {step} trains, so there is nothing to chat with"
            yield Problem(f"{key}.weights", found, do="Put train before it, or set weights=pretrained")


def _has_learnt(context: Context, step: str) -> bool:
    return bool(context.training_steps_before(step) or context.get("finetune.adapters"))


def _without_held_out(context: Context) -> Iterator[Problem]:
    seen = set()
    for step in context.steps:
        key = context.part(step, "dataset")
        if key not in seen and issubclass(context.step_type(step), (EvaluateConf, PredictConf)) and not holds_out(context, key):
            seen.add(key)
            found = f"no examples are held out, so {step} has nothing to measure"
            do = f"Set {key}.val_size (0.1: a tenth of them), {key}.val_split or {key}.val_files, or leave {step} out of the pipeline"
            yield Problem(f"{key}.val_size", found, do=do)


def holds_out(context: Context, dataset: str) -> bool:
    """Whether a dataset holds examples out for validation."""
    parts = [dataset, *(f"{dataset}.mix.{name}" for name in context.get(f"{dataset}.mix") or {})]
    return any(context.get(f"{part}.{name}") for part in parts for name in ("val_size", "val_files", "val_split"))

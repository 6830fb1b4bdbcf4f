"""`model.from_step`: a training step that stands earlier, and left what the step can begin with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

from llmmod.errors import Problem, nearest
from llmmod.schema.model import ModelConf
from llmmod.schema.step.chat import ChatConf
from llmmod.schema.step.train import TrainConf
from llmmod.schema.validate.context import Context
from llmmod.schema.wording import shown

_OWN = ("from_step", "name")


def check_from_step(context: Context) -> Iterator[Problem]:
    """A problem for each step that would begin with what no step before it leaves."""
    if context.get("model.from_step") is not None:
        do = "Set it for one: steps.<name>.model.from_step"
        yield Problem("model.from_step", "no step comes before the model that all of them begin with", do=do)
    for step in context.steps:
        key, named = f"steps.{step}.model.from_step", context.get(f"steps.{step}.model.from_step")
        if named is None:
            continue
        if named in context.training_steps_before(step):
            yield from _wrong_head(context, step, str(named), key)
        else:
            yield _not_before(context, step, str(named), key)
        yield from _beside(context, step)


def _not_before(context: Context, step: str, named: str, key: str) -> Problem:
    before = context.training_steps_before(step)
    allowed = f"Allowed: {', '.join(before)}" if before else ""
    if named in context.steps and context.step_type(named) is not TrainConf:
        return Problem(key, f"{named} doesn't train, so it leaves no model", allowed)
    if named in context.steps:
        pipeline = ",".join(context.steps)
        return Problem(key, f"{named} doesn't come before {step} in the pipeline [{pipeline}]", allowed, "Change their order")
    close = nearest(named, before)
    do = "" if before else f"Put one before {step} in the pipeline"
    return Problem(key, f"there is no training step {shown(named)} before {step}", f"Did you mean '{close[0]}'?" if close else allowed, do)


def _wrong_head(context: Context, step: str, named: str, key: str) -> Iterator[Problem]:
    """What was left is no language model, where one is needed, or another kind of model than the step's arguments are for."""
    left = context.head(named)
    stage = context.get(f"{context.part(named, 'training')}.stage")
    found = f"{named} leaves a model with a {left} head (stage={stage})"
    schema = context.step_type(step)
    if schema in (TrainConf, ChatConf) and left != "language":
        others = [name for name in context.training_steps_before(step) if context.head(name) == "language"]
        allowed = f"Allowed: {', '.join(others)}" if others else ""
        yield Problem(key, f"{found}, and {step} needs one that writes", allowed)
    elif schema is not TrainConf and context.head(step) != left:
        own = f"steps.{step}.training"
        yield Problem(key, f"{found}, and {own} is for one with a {context.head(step)} head", do=f"Leave {own} out")


def _beside(context: Context, step: str) -> Iterator[Problem]:
    """What else the step says of its model: that is said where the earlier step says it."""
    node = context.get(f"steps.{step}.model")
    for field in fields(ModelConf):
        key = f"steps.{step}.model.{field.name}"
        if field.name not in _OWN and (context.user_set(key) or _plain(node.get(field.name)) != _plain(_default(field))):
            named = node["from_step"]
            yield Problem(key, f"not read, since the model is what {named} leaves", do=f"Set it where {named} has it")


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else field.default_factory() if field.default_factory is not MISSING else None


def _plain(value: Any) -> Any:
    """A value as it looks in a plain configuration: a dataclass as its fields, an enum as what it is written as."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return str(value) if isinstance(value, str) else value

"""A stage's defaults in the configuration are those of its argument class.

A run passes on only the values that differ from a default. If the two sides differed, it would train with a value that the configuration
doesn't show.
"""

from __future__ import annotations

import dataclasses
from enum import Enum

import pytest

from llmmod.config.register import SCHEMAS, schema_class
from llmmod.config.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.config.schema.training import StageConf
from llmmod.instantiate import locate

STAGES = sorted(path.split("/")[-1] for path in SCHEMAS if path.startswith("schema/training/"))
# Read by steps rather than by a trainer (Seq2SeqTrainingArguments), or by us: see `llmmod.trainers.arguments`.
OF_NO_TRAINER = {f.name for cls in (Seq2SeqTrainingArguments, StageConf) for f in dataclasses.fields(cls)}


def defaults(cls):
    """Field -> its default; for an enum its value, as in a configuration."""
    made = {f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in dataclasses.fields(cls)}
    return {name: value.value if isinstance(value, Enum) else value for name, value in made.items()}


def test_every_stage_is_covered():
    assert {"dpo", "grpo", "kto", "ppo", "pt", "rm", "sft"} <= set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_s_defaults_are_those_of_its_trainer_s_arguments(stage):
    schema = schema_class(f"schema/training/{stage}")
    ours, theirs = defaults(schema), defaults(locate(schema()._target_))
    assert theirs.keys() <= ours.keys()
    assert ours.keys() - theirs.keys() <= OF_NO_TRAINER
    assert {name: (ours[name], theirs[name]) for name in theirs if ours[name] != theirs[name]} == {}


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_our_own_fields_are_declared_once(stage):
    """The schema and the arguments inherit the same class of fields, so an edit changes both."""
    schema = schema_class(f"schema/training/{stage}")
    arguments = locate(schema()._target_)
    own = next(base for base in schema.__mro__ if base.__name__ == f"{stage.capitalize()}Fields")
    assert issubclass(arguments, own)
    assert not [name for name in vars(own)["__annotations__"] if name in vars(arguments).get("__annotations__", {})]

"""The trials of benchmarks/effects.py: each argument of each stage, with another value than its default."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TABLES = Path(__file__).parents[2] / "tests" / "e2e" / "effects.yaml"
STAGES = ("pt", "sft", "rm", "dpo", "kto", "ppo", "grpo")
SHORT = (
    "model=llama", "render=vanilla", "finetune=lora", "finetune.r=2", "pipeline=[train]", "dataset.val_files=null", "dataset.val_size=4",
    "dataset.max_samples=10", "dataset.cutoff_len=40", "dataset.cache=false",
    "training.per_device_train_batch_size=2", "training.per_device_eval_batch_size=2",
    "training.logging_steps=1", "training.learning_rate=1e-2", "training.warmup_steps=0", "training.use_cpu=true",
)  # fmt: skip
ANSWERS = ("+training.reward.even._target_=effects.even", "training.max_completion_length=6")
OF_STAGE = {"ppo": ANSWERS, "grpo": (*ANSWERS, "training.num_generations=2", "training.gradient_accumulation_steps=2")}


@dataclass(frozen=True)
class Trial:
    """A field of a stage, the value to try, and the settings that it needs.

    Args:
        value: as on the command line.
        given: overrides of both runs.
        also: overrides of the run in which the field is set.
        without: keys that neither run sets, though those of other trials do.
        exception: why it can't have an effect here; empty: it must have one.
    """

    stage: str
    name: str
    value: str
    given: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    exception: str = ""

    @property
    def id(self) -> str:
        """As on the command line."""
        return f"{self.stage}.{self.name}"


def trials() -> tuple[list[Trial], list[str]]:
    """A trial for every argument of every stage; and the faults of the tables: missing values, names that no stage has."""
    tables = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
    unused = {(table, name) for table in tables for name in tables[table]}
    found, faults = [], []
    for stage in STAGES:
        for name, of_field in fields_of(stage).items():
            keys = {table: next((key for key in (f"{stage}.{name}", name) if key in tables[table]), None) for table in tables}
            unused -= set(keys.items())
            how = tables["trials"].get(keys["trials"], {})
            try:
                value = _typed(how["value"]) if how else other_value(stage, of_field)
            except LookupError as error:
                faults.append(str(error))
                continue
            beside = [tuple(how.get(kind, ())) for kind in ("with", "also", "without")]
            found.append(Trial(stage, name, value, *beside, tables["exceptions"].get(keys["exceptions"]) or ""))
    return found, faults + sorted(f"{table}: no stage has {name}" for table, name in unused)


def _typed(value: Any) -> str:
    """A value of the table as on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def fields_of(stage: str) -> dict[str, Any]:
    """Every argument of a stage's trainer, without the fields of `StageConf` (its trainer, its kind of data, …)."""
    from llmmod.config.schema.training import StageConf

    left_out = {"_target_", *(of_field.name for of_field in dataclasses.fields(StageConf))}
    return {of_field.name: of_field for of_field in dataclasses.fields(schema_of(stage)) if of_field.name not in left_out}


def schema_of(stage: str) -> Any:
    """The dataclass of a stage's `training`."""
    from llmmod.config.register import schema_class

    return schema_class(f"schema/training/{stage}")


def other_value(stage: str, of_field: Any) -> str:
    """Another value than a run of the stage has, by the field's type, as on the command line.

    Raises:
        LookupError: the type doesn't say what to try.
    """
    from llmmod.config.validate.values import tables

    now = values_of(stage).get(of_field.name)
    kind = of_field.type.__name__ if isinstance(of_field.type, type) else str(of_field.type)
    choices = [c for c in tables(schema_of(stage), "CHOICES").get(of_field.name, ()) if c not in (now, [now], "no")]
    if choices and kind.startswith("str"):
        return choices[0]
    if kind.startswith("bool"):
        return "false" if now else "true"
    if kind.startswith(("int", "float")) and isinstance(now, (int, float)):
        return str(now + 1 if kind.startswith("int") else now / 2 or 0.5)
    raise LookupError(f"{stage}.{of_field.name} is {now!r} and takes {kind}: say what to try in {TABLES.name}")


@functools.cache
def values_of(stage: str) -> dict[str, Any]:
    """The fields of `training` as the baseline of a stage has them."""
    from llmmod.config.compose import compose_config, resolved

    plain, _ = resolved(compose_config(usual(stage)).config)
    return plain["training"]


def usual(stage: str) -> list[str]:
    """The overrides of every run of a stage."""
    return [f"stage={stage}", *SHORT, *OF_STAGE.get(stage, ())]


def baseline_of(trial: Trial) -> list[str]:
    """The overrides of the run that a trial is compared with."""
    return [setting for setting in usual(trial.stage) if setting.partition("=")[0] not in trial.without] + list(trial.given)


def sample(found: Sequence[Trial], count: int, seed: int) -> list[Trial]:
    """A random sample of `count` trials, with the stages in turn, so that each has its share."""
    drawn = {stage: [trial for trial in found if trial.stage == stage] for stage in STAGES}
    for stage, of_stage in drawn.items():
        random.Random(f"{seed} {stage}").shuffle(of_stage)
    return [drawn[STAGES[number % len(STAGES)]][number // len(STAGES)] for number in range(count)]

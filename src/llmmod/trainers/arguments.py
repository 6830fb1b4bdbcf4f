"""The arguments object that a stage's trainer takes, made from `training.*`.

Only what differs from the class's own default is passed, so that deprecated arguments stay untouched. What the configuration leaves
open is decided from the device: TRL's configs train in bfloat16 unless told otherwise, which a CPU refuses.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from transformers.utils import is_torch_bf16_gpu_available

from llmmod.config.schema.online_training import rehearsed
from llmmod.config.schema.training import SAID_ELSEWHERE, StageConf
from llmmod.errors import ConfigError, Problem
from llmmod.instantiate import locate

log = logging.getLogger("llmmod.train")
# Of Seq2SeqTrainingArguments; read by the evaluate and predict steps rather than by a trainer that has no such argument.
GENERATION_FIELDS = ("predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config")
# Of ours, or done by the train step; and what is compiled, the layers alone (`stages.lean.compiled`).
_COMPILING = {"torch_compile", "torch_compile_backend", "torch_compile_mode"}
_OWN_FIELDS = {field.name for field in dataclasses.fields(StageConf)} | {"_target_", "resume_from_checkpoint"} | _COMPILING
SMOKE_STEPS = 2
SMOKE_BATCH = 2
SMOKE_TOKENS = 16


def training_arguments(conf: Any, *, output_dir: Path, seed: int, smoke: bool, has_eval: bool = True) -> Any:
    """An instance of the class that `conf._target_` names, e.g. trl.SFTConfig.

    Args:
        conf: a StageConf, `training.*` as plain Python.
        output_dir: where checkpoints go.
        seed: the run's seed, used unless `training.seed` says otherwise.
        smoke: whether this is a rehearsal: two optimizer steps on small batches.
        has_eval: whether there are examples to evaluate on; without, nothing is evaluated during training.

    Raises:
        ConfigError: if the class has no such argument, or refuses a value or their combination, or there is no device for it.
    """
    target = locate(conf._target_)
    values = _changed(conf, target)
    known = {field.name for field in dataclasses.fields(target)}
    problems = [_elsewhere(name) for name in values if name in SAID_ELSEWHERE]
    _translate_sortish(values)
    problems += [_no_such(name, conf._target_) for name in values if name not in known and name not in SAID_ELSEWHERE]
    if problems:
        raise ConfigError(problems)
    values.setdefault("seed", seed)
    if not _has_accelerator(conf):
        _leave_out(values, smoke=smoke)
    values |= _precision(conf, fp16=values.get("fp16", False)) | _checkpointing(conf, known)
    # Our callbacks report, and our own data code prepares: a trainer must neither print, nor prepare, nor drop a column.
    fixed = {"output_dir": str(output_dir), "disable_tqdm": True, "remove_unused_columns": False}
    fixed |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    values |= {name: value for name, value in fixed.items() if name in known}
    if not has_eval:
        values |= {"eval_strategy": "no", "eval_on_start": False}
    if smoke:
        _construct(target, values)  # the class refuses numbers that don't go together: those of the real run, too
        values |= {name: value for name, value in _rehearsal(conf).items() if name in known}
    return _construct(target, values)


def _changed(conf: Any, target: Any) -> dict[str, Any]:
    """The arguments whose value is not the default of the class that takes them: a class of the user's own may have others than the schema.

    What the class doesn't have at all is there if it was set.
    """
    theirs = {field.name: _default(field) for field in dataclasses.fields(target)}
    changed = {}
    for field in dataclasses.fields(conf):
        value = getattr(conf, field.name)
        if field.name not in _OWN_FIELDS and field.name not in GENERATION_FIELDS and value != theirs.get(field.name, _default(field)):
            changed[field.name] = value
    return changed


def _default(field: dataclasses.Field[Any]) -> Any:
    """A field's default; that of an enum as the text which stands for it in a configuration."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return default.value if isinstance(default, Enum) else default


def _translate_sortish(values: dict[str, Any]) -> None:
    # Seq2SeqTrainer's sampler that keeps examples of like length together has this name in every other trainer.
    if values.pop("sortish_sampler", False):
        values["train_sampling_strategy"] = "group_by_length"


def _has_accelerator(conf: Any) -> bool:
    return not conf.use_cpu and torch.accelerator.is_available()


def _leave_out(values: dict[str, Any], *, smoke: bool) -> None:
    """Take away what a CPU can't do and the libraries (transformers 5.23, trl 1.16) pass over or end at; but for a rehearsal, refuse it.

    Raises:
        ConfigError: it is set, and this is no rehearsal.
    """
    found = [name for name in _OF_ACCELERATORS if values.get(name)]
    if found and not smoke:
        raise ConfigError(Problem(f"training.{name}", "true, and it does nothing on a CPU", do=_OF_ACCELERATORS[name]) for name in found)
    for name in found:
        log.warning("training.%s does nothing on a CPU: this rehearsal goes without it", name)
        del values[name]


# Arguments that need an accelerator -> what to do where there is none.
_OF_ACCELERATORS = {
    "fp16": "Set training.bf16=true, which a CPU has, or leave it out",
    "activation_offloading": "Set training.gradient_checkpointing=true, which saves memory there too",
}


def _precision(conf: Any, *, fp16: bool) -> dict[str, Any]:
    """Device and mixed precision: `bf16` left open means yes on an accelerator that has it, and no on a CPU."""
    on_cpu = not _has_accelerator(conf)
    if conf.bf16 is not None:
        return {"use_cpu": on_cpu, "bf16": conf.bf16}
    return {"use_cpu": on_cpu, "bf16": not on_cpu and not fp16 and is_torch_bf16_gpu_available()}


def _checkpointing(conf: Any, known: set[str]) -> dict[str, Any]:
    # transformers 5 renamed gradient_checkpointing and warns where the old name alone is set.
    if "activation_checkpointing" not in known or conf.activation_checkpointing is not None:
        return {}
    return {"activation_checkpointing": conf.gradient_checkpointing, "activation_checkpointing_kwargs": conf.gradient_checkpointing_kwargs}


def _rehearsal(conf: Any) -> dict[str, Any]:
    """What smoke=true changes: two optimizer steps, each logged, and a checkpoint at the end, if none is wanted earlier; answers are short,
    and not scored by a reward model on the disk.
    """
    batch = {name: min(getattr(conf, name), SMOKE_BATCH) for name in _BATCH_FIELDS}
    batch["max_completion_length"] = min(getattr(conf, "max_completion_length", None) or SMOKE_TOKENS, SMOKE_TOKENS)
    batch |= {"reward": rehearsed(conf.reward)} if hasattr(conf, "reward") else {}
    answers = [name for name in ("num_generations", "num_generations_eval") if hasattr(conf, name)]
    batch |= {name: min(getattr(conf, name) or SMOKE_BATCH, SMOKE_BATCH) for name in answers}
    batch |= {name: None for name in ("generation_batch_size", "steps_per_generation") if hasattr(conf, name)}
    every = {name: min(getattr(conf, name) or SMOKE_STEPS, SMOKE_STEPS) for name in ("eval_steps", "save_steps")}
    return batch | every | {"max_steps": SMOKE_STEPS, "logging_steps": 1, "eval_delay": 0}


_BATCH_FIELDS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def _construct(target: Any, values: dict[str, Any]) -> Any:
    try:
        return target(**values)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise ConfigError(refusal(error, values)) from error


def refusal(error: Exception, named: Any) -> Problem:
    """A library's refusal as a problem with the first of the arguments `named` that its message speaks of."""
    text = " ".join(str(error).split())
    words = re.findall(r"\w+", text)
    name = next((word for word in words if word in named), None)
    return Problem(f"training.{name}" if name else "training", text)


def _elsewhere(name: str) -> Problem:
    found = "llmmod does this before the trainer sees the data, so it would change nothing"
    return Problem(f"training.{name}", found, do=f"Set {SAID_ELSEWHERE[name]}")


def _no_such(name: str, target: str) -> Problem:
    return Problem(f"training.{name}", f"{target} has no such argument")

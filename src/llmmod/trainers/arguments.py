"""The arguments object of a stage's trainer, made from `training.*`.

Only values that differ from the class's own defaults are passed, so deprecated arguments stay unset. Values that the configuration leaves
open depend on the device: trl's configs train in bfloat16 by default, which a CPU refuses.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from transformers.utils import is_torch_bf16_gpu_available

from llmmod.config.schema.distributed import DeepspeedConf, DistributedConf
from llmmod.config.schema.training import LOWER_IS_BETTER, SAID_ELSEWHERE, StageConf, rehearsed
from llmmod.errors import ConfigError, Problem
from llmmod.instantiate import locate

log = logging.getLogger("llmmod.train")
# Fields of Seq2SeqTrainingArguments that the steps evaluate and predict read; our trainers don't have them.
GENERATION_FIELDS = ("predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config")
# `compile_layers` compiles the layers only, so the Trainer doesn't get these.
_COMPILING = {"torch_compile", "torch_compile_backend", "torch_compile_mode"}
_OWN_FIELDS = {field.name for field in dataclasses.fields(StageConf)} | {"_target_", "resume_from_checkpoint"} | _COMPILING
SMOKE_STEPS = 2
SMOKE_BATCH = 2
SMOKE_TOKENS = 16
_BATCH_FIELDS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
# Arguments that need an accelerator -> what to do without one.
_ACCELERATOR_ONLY = {
    "fp16": "Set training.bf16=true, which works on a CPU, or leave it out",
    "activation_offloading": "Set training.gradient_checkpointing=true, which saves memory on a CPU too",
}


def training_arguments(
    conf: Any, *, output_dir: Path, seed: int, smoke: bool, has_eval: bool = True, engine: Mapping[str, Any] | None = None
) -> Any:
    """An instance of the class `conf._target_`, e.g. trl.SFTConfig.

    Args:
        conf: a StageConf, `training.*` as plain Python.
        output_dir: of checkpoints.
        seed: the run's seed, unless `training.seed` is set.
        smoke: whether this is a rehearsal: two optimizer steps with small batches.
        has_eval: whether examples are held out; otherwise the training runs without evaluations.
        engine: the engine's arguments for several processes, from `engine_arguments`.

    Raises:
        ConfigError: the class doesn't have an argument, or refuses a value or a combination of values, or the device can't do it.
    """
    target = locate(conf._target_)
    values = _changed(conf, target)
    known = {field.name for field in dataclasses.fields(target)}
    elsewhere = "llmmod does this before the trainer sees the data, so it would have no effect"
    problems = [Problem(f"training.{n}", elsewhere, do=f"Set {SAID_ELSEWHERE[n]}") for n in values if n in SAID_ELSEWHERE]
    if values.pop("sortish_sampler", False):  # Seq2SeqTrainer's name for it
        values["train_sampling_strategy"] = "group_by_length"
    unknown = [name for name in values if name not in known and name not in SAID_ELSEWHERE]
    problems += [Problem(f"training.{name}", f"not an argument of {conf._target_}") for name in unknown]
    if problems:
        raise ConfigError(problems)
    values.setdefault("seed", seed)
    values |= engine or {}
    if not _has_accelerator(conf):
        _refuse_on_cpu(values, smoke=smoke)
    elif conf.dataloader_pin_memory and "accelerator_config" in known:
        values.setdefault("accelerator_config", {"non_blocking": True})  # from pinned memory a batch is copied while the device computes
    values |= _best(conf, values)
    values |= _precision(conf, fp16=values.get("fp16", False)) | _checkpointing(conf, known)
    # Our callbacks report progress, and our code prepares the data: the trainer must not print, prepare, or drop columns.
    fixed = {"output_dir": str(output_dir), "disable_tqdm": True, "remove_unused_columns": False}
    fixed |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    values |= {name: value for name, value in fixed.items() if name in known}
    if not has_eval:
        values |= {"eval_strategy": "no", "eval_on_start": False}
    if smoke:
        _construct(target, values)  # the class checks the values of the real run too
        values |= {name: value for name, value in _rehearsal(conf).items() if name in known}
    return _construct(target, values)


def _changed(conf: Any, target: Any) -> dict[str, Any]:
    """The arguments that differ from the defaults of the class, which may be the user's own and differ from the schema.

    Arguments that the class doesn't have are included if they were set.
    """
    theirs = {field.name: _default(field) for field in dataclasses.fields(target)}
    changed = {}
    for field in dataclasses.fields(conf):
        value = getattr(conf, field.name)
        if field.name not in _OWN_FIELDS and field.name not in GENERATION_FIELDS and value != theirs.get(field.name, _default(field)):
            changed[field.name] = value
    return changed


def _default(field: dataclasses.Field[Any]) -> Any:
    """A field's default; of an enum, its value."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return default.value if isinstance(default, Enum) else default


def _has_accelerator(conf: Any) -> bool:
    return not conf.use_cpu and torch.accelerator.is_available()


def _refuse_on_cpu(values: dict[str, Any], *, smoke: bool) -> None:
    """Refuse arguments that the libraries (transformers 5.23, trl 1.16) ignore or fail on with a CPU; a rehearsal drops them.

    Raises:
        ConfigError: one is set, and this is not a rehearsal.
    """
    found = [name for name in _ACCELERATOR_ONLY if values.get(name)]
    if found and not smoke:
        raise ConfigError(Problem(f"training.{name}", "true, but it has no effect on a CPU", do=_ACCELERATOR_ONLY[name]) for name in found)
    for name in found:
        log.warning("training.%s has no effect on a CPU: this rehearsal runs without it", name)
        del values[name]


def _precision(conf: Any, *, fp16: bool) -> dict[str, Any]:
    """Device and mixed precision; `bf16: null` means true on an accelerator that has it, and false on a CPU."""
    on_cpu = not _has_accelerator(conf)
    if conf.bf16 is not None:
        return {"use_cpu": on_cpu, "bf16": conf.bf16}
    return {"use_cpu": on_cpu, "bf16": not on_cpu and not fp16 and _has_bfloat16()}


def _has_bfloat16() -> bool:
    """Whether the accelerator computes in bfloat16. transformers (5.23) also counts GPUs that emulate it slowly, such as T4 and V100."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(is_torch_bf16_gpu_available())


def _best(conf: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The metric for early stopping, and whether lower is better, if transformers (5.23) would not know.

    transformers assumes that lower is better only for names that end in `loss`.
    """
    metric = values.get("metric_for_best_model")
    if metric is None and conf.early_stopping_patience is not None:
        metric = "reward" if conf.data_kind == "prompt" else "loss"
    if metric is None:
        return {}
    lower = metric.removeprefix("eval_").removeprefix("predict_") in LOWER_IS_BETTER
    return {"metric_for_best_model": metric} | ({"greater_is_better": False} if lower and values.get("greater_is_better") is None else {})


def _checkpointing(conf: Any, known: set[str]) -> dict[str, Any]:
    # transformers 5 renamed gradient_checkpointing, and warns if only the old name is set.
    if "activation_checkpointing" not in known or conf.activation_checkpointing is not None:
        return {}
    return {"activation_checkpointing": conf.gradient_checkpointing, "activation_checkpointing_kwargs": conf.gradient_checkpointing_kwargs}


def _rehearsal(conf: Any) -> dict[str, Any]:
    """The changes of `smoke=true`: two optimizer steps, both logged, and a checkpoint at the end, unless one is due earlier.

    Completions are short, and a reward model on the disk does not score them.
    """
    batch = {name: min(getattr(conf, name), SMOKE_BATCH) for name in _BATCH_FIELDS}
    batch["max_completion_length"] = min(getattr(conf, "max_completion_length", None) or SMOKE_TOKENS, SMOKE_TOKENS)
    batch |= {"reward": rehearsed(conf.reward)} if hasattr(conf, "reward") else {}
    answers = [name for name in ("num_generations", "num_generations_eval") if hasattr(conf, name)]
    batch |= {name: min(getattr(conf, name) or SMOKE_BATCH, SMOKE_BATCH) for name in answers}
    batch |= {name: None for name in ("generation_batch_size", "steps_per_generation") if hasattr(conf, name)}
    every = {name: min(getattr(conf, name) or SMOKE_STEPS, SMOKE_STEPS) for name in ("eval_steps", "save_steps")}
    return batch | every | {"max_steps": SMOKE_STEPS, "logging_steps": 1, "eval_delay": 0}


def _construct(target: Any, values: dict[str, Any]) -> Any:
    try:
        return target(**values)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise ConfigError(refusal(error, values)) from error


def engine_arguments(conf: DistributedConf) -> dict[str, Any]:
    """The arguments of transformers.TrainingArguments for the engine of `distributed.name`; empty for none and ddp."""
    if conf.name == "fsdp":
        return {"fsdp": True, "fsdp_config": {name: value for name, value in dataclasses.asdict(conf.fsdp).items() if value is not None}}
    if conf.name.startswith("deepspeed"):
        return {"deepspeed": deepspeed_config(conf.deepspeed, stage=3 if conf.name == "deepspeed_zero3" else 2)}
    return {}


def deepspeed_config(conf: DeepspeedConf, *, stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration. transformers replaces each "auto" by the value of the trainer's arguments or the model.

    Args:
        conf: `distributed.deepspeed`.
        stage: the stage of ZeRO, 2 or 3.
    """
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": conf.overlap_comm,
        "contiguous_gradients": conf.contiguous_gradients,
        "reduce_bucket_size": conf.reduce_bucket_size or (500_000_000 if stage == 2 else "auto"),
    }
    if stage == 2:
        zero |= {name: getattr(conf, name) for name in ("allgather_bucket_size", "round_robin_gradients")}
    else:
        zero |= {name: getattr(conf, name) for name in ("sub_group_size", "zero_hpz_partition_size")}
        stage3 = {name: value for name, value in dataclasses.asdict(conf).items() if name.startswith("stage3_")}
        zero |= {name: "auto" if value is None else value for name, value in stage3.items()}
    for name in ("offload_optimizer", "offload_param") if stage == 3 else ("offload_optimizer",):
        if (device := getattr(conf, name)) != "none":
            zero[name] = {"device": device, "pin_memory": conf.pin_memory} | ({"nvme_path": conf.nvme_path} if device == "nvme" else {})
    of_trainer = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    composed: dict[str, Any] = {"zero_optimization": zero, "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}} | dict.fromkeys(
        of_trainer, "auto"
    )
    # The trainer makes the optimizer, also for LoRA+. With offloading, DeepSpeed accepts only its own optimizers unless this is set.
    composed |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return _merged(composed, conf.extra)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings merged; values of the second win."""
    both = [name for name, value in over.items() if isinstance(under.get(name), dict) and isinstance(value, dict)]
    return {**under, **over, **{name: _merged(under[name], over[name]) for name in both}}


def refusal(error: Exception, named: Any) -> Problem:
    """A library's error as a problem with the first of the arguments `named` that its message mentions."""
    text = " ".join(str(error).split())
    words = re.findall(r"\w+", text)
    name = next((word for word in words if word in named), None)
    return Problem(f"training.{name}" if name else "training", text)

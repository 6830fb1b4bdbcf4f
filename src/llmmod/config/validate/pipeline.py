"""The pipeline: its steps, their models and examples, and the run's output directory.

Each name must be a step and appear once. A step that needs a model or held-out examples must have them. `model.from_step` must name an
earlier training step with a suitable model. `output_dir` must be writable and must not contain another run.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from llmmod.code_arguments import find_module
from llmmod.config.schema.base import Weights
from llmmod.config.schema.model import ModelConf
from llmmod.config.schema.steps import ChatConf, EvaluateConf, PredictConf, TrainConf
from llmmod.config.step_parts import Context
from llmmod.config.wording import shown
from llmmod.distributed import is_launched, rank, world_size
from llmmod.errors import Problem, nearest
from llmmod.files.lock import holder

_OWN = ("from_step", "name")
_SLURM = ("sbatch", "srun")
_SAMPLING = ("ppo", "grpo")  # stages that generate while they train
KEY = "output_dir"
_OTHER = "Choose another directory"
_LEAST_FREE_BYTES = 2**20  # for a run's record and log; the size of its weights isn't known yet


def check_pipeline(context: Context) -> Iterator[Problem]:
    """A problem for each name that is unknown or appears twice, and for each step without the model or the examples that it needs."""
    names = context.get("pipeline") or []
    steps = context.get("steps") or {}
    if not names:
        yield Problem("pipeline", "has no steps", f"Allowed: {', '.join(steps)}")
    for name, count in Counter(map(str, names)).items():
        if name not in steps:
            close = nearest(name, steps)
            meant = f"Did you mean '{close[0]}'? " if close else ""
            own = f"A step of your own: +step@steps.{name}=train steps.{name}._target_=…"
            do = own if not close and name.isidentifier() else ""
            yield Problem("pipeline", f"{shown(name)} is not a step", f"{meant}Allowed: {', '.join(steps)}", do)
        elif count > 1:
            do = f"Give the second a name of its own: +step@steps.{name}_2={context.choices.get(f'step@steps.{name}', name)}"
            yield Problem("pipeline", f"'{name}' appears {count} times", do=do)
    if context.get("replay") is not None:
        do = "Type it alone: llmmod replay=<a run's directory>"
        yield Problem("replay", f"'{context.get('replay')}', but replay only works alone, for a single run", do=do)
    yield from _without_model(context)
    yield from _without_validation(context)
    if context.user_set("reuse") and context.get("reuse") is True and sum(map(context.trains, context.steps)) < 2:
        yield Problem("reuse", "true, but only a run of several training steps can reuse results of earlier runs", do="Leave it out")


def check_sweep(context: Context) -> Iterator[Problem]:
    """A problem if `sweep.metric` is empty, if `sweep.direction` doesn't fit it, or if this machine can't launch the jobs."""
    metric, direction = context.get("sweep.metric"), context.get("sweep.direction")
    names = metric if isinstance(metric, list) else [metric]
    if not names:
        yield Problem("sweep.metric", "has no metric", do="Name one of metrics.json, such as eval_loss")
    if isinstance(direction, list) and len(direction) != len(names):
        found = f"{len(direction)} directions for {len(names)} metrics"
        yield Problem("sweep.direction", found, do="Give one for each, or one for all")
    launcher = str(((context.hydra or {}).get("launcher") or {}).get("_target_")) if context.in_sweep else ""
    if launcher.endswith(".SlurmLauncher") and (missing := [program for program in _SLURM if shutil.which(program) is None]):
        found = f"submitit_slurm submits jobs by Slurm's {' and '.join(_SLURM)}, and this machine doesn't have {' or '.join(missing)}"
        yield Problem("hydra/launcher", found, do="Type the command on a login node of the cluster, or use submitit_local")
    if launcher.endswith(".RayLauncher") and find_module("ray") is None:
        yield Problem("hydra/launcher", "llmmod_ray needs ray", do="pip install 'llmmod[ray]'")


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
        elif (
            random
            and context.step_type(step) is ChatConf
            and not context.training_steps_before(step)
            and not context.get("finetune.adapters")
        ):
            seen.add(key)
            found = f"random, but a training step doesn't come before {step}, so chat doesn't have a trained model"
            yield Problem(f"{key}.weights", found, do="Put train before it, or set weights=pretrained")


def _without_validation(context: Context) -> Iterator[Problem]:
    seen = set()
    for step in context.steps:
        key = context.part(step, "dataset")
        if key not in seen and issubclass(context.step_type(step), (EvaluateConf, PredictConf)) and not holds_out(context, key):
            seen.add(key)
            found = f"examples are not held out, so {step} can't measure anything"
            do = f"Set {key}.val_size (0.1: a tenth of them), {key}.val_split or {key}.val_files, or leave {step} out of the pipeline"
            yield Problem(f"{key}.val_size", found, do=do)


def holds_out(context: Context, dataset: str) -> bool:
    """Whether a dataset holds examples out for validation."""
    parts = [dataset, *(f"{dataset}.mix.{name}" for name in context.get(f"{dataset}.mix") or {})]
    return any(context.get(f"{part}.{name}") for part in parts for name in ("val_size", "val_files", "val_split"))


def check_from_step(context: Context) -> Iterator[Problem]:
    """A problem for each step whose `model.from_step` doesn't name an earlier step with a suitable model."""
    if context.get("model.from_step") is not None:
        do = "Set it for one: steps.<name>.model.from_step"
        yield Problem("model.from_step", "set at the root, but the first step doesn't have an earlier one", do=do)
    for step in context.steps:
        key, named = f"steps.{step}.model.from_step", context.get(f"steps.{step}.model.from_step")
        if named is None:
            continue
        if named in context.training_steps_before(step):
            yield from _other_head(context, step, str(named), key)
        else:
            yield _not_before(context, step, str(named), key)
        yield from _not_read(context, step)


def _not_before(context: Context, step: str, named: str, key: str) -> Problem:
    before = context.training_steps_before(step)
    allowed = f"Allowed: {', '.join(before)}" if before else ""
    if named in context.steps and context.step_type(named) is not TrainConf:
        return Problem(key, f"{named} doesn't train, so it doesn't produce a model", allowed)
    if named in context.steps:
        pipeline = ",".join(context.steps)
        return Problem(key, f"{named} doesn't come before {step} in the pipeline [{pipeline}]", allowed, "Change their order")
    close = nearest(named, before)
    do = "" if before else f"Put one before {step} in the pipeline"
    return Problem(key, f"{shown(named)} is not a training step before {step}", f"Did you mean '{close[0]}'?" if close else allowed, do)


def _other_head(context: Context, step: str, named: str, key: str) -> Iterator[Problem]:
    """A problem if a step needs a language model and gets another kind, or if its arguments are for another kind of model."""
    left = context.head(named)
    stage = context.get(f"{context.part(named, 'training')}.stage")
    found = f"{named} trains a model with a {left} head (stage={stage})"
    schema = context.step_type(step)
    if schema in (TrainConf, ChatConf) and left != "language":
        others = [name for name in context.training_steps_before(step) if context.head(name) == "language"]
        allowed = f"Allowed: {', '.join(others)}" if others else ""
        yield Problem(key, f"{found}, but {step} needs a language model", allowed)
    elif schema is not TrainConf and context.head(step) != left:
        own = f"steps.{step}.training"
        yield Problem(key, f"{found}, and {own} is for one with a {context.head(step)} head", do=f"Leave {own} out")


def _not_read(context: Context, step: str) -> Iterator[Problem]:
    """A problem for each other `model.*` key of a step with `model.from_step`: the earlier step's apply."""
    node = context.get(f"steps.{step}.model")
    for field in fields(ModelConf):
        key = f"steps.{step}.model.{field.name}"
        if field.name not in _OWN and (context.user_set(key) or _plain(node.get(field.name)) != _plain(_default(field))):
            named = node["from_step"]
            yield Problem(key, f"not read, since the step uses the model of {named}", do=f"Set it for {named}")


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else field.default_factory() if field.default_factory is not MISSING else None


def _plain(value: Any) -> Any:
    """A value as in a plain configuration: a dataclass as its fields, an enum as its name."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return str(value) if isinstance(value, str) else value


def check_distributed(context: Context) -> Iterator[Problem]:
    """A problem for each setting with which the processes can't start, connect, or write to one directory."""
    conf = context.get("distributed")
    if not isinstance(conf, dict) or conf.get("name") in (None, "none"):
        return
    if is_launched() and conf["processes"] and conf["processes"] * conf["nodes"] != world_size():
        found = f"{conf['processes']}, but {world_size()} processes were started"
        yield Problem("distributed.processes", found, do="Leave it out: torchrun and accelerate set the number")
    if conf["name"].startswith("deepspeed") and find_module("deepspeed") is None:
        yield Problem("distributed", f"{conf['name']}, but deepspeed isn't installed", do="Install it: pip install deepspeed")
    stages = {context.get(f"{place}.stage") for place in context.places("training")} & {*_SAMPLING}
    if conf["name"] in ("fsdp", "deepspeed_zero3") and stages:
        found = f"{conf['name']}, which shards the model, but stage={min(stages)} samples completions with the whole model"
        yield Problem("distributed", found, "Allowed: ddp, deepspeed_zero2", "Set distributed=ddp")
    zero = conf["deepspeed"]
    if zero["nvme_path"] is None and "nvme" in (zero["offload_optimizer"], zero["offload_param"]):
        yield Problem("distributed.deepspeed.nvme_path", "is not set, but states are offloaded to nvme", do="Set it to a directory there")
    for name in ("fsdp", "deepspeed"):
        for place in context.places("training"):
            if context.get(f"{place}.{name}"):
                do = f"Leave it out; its settings are distributed.{name}.*"
                yield Problem(f"{place}.{name}", f"set, but distributed={conf['name']} sets the engine", do=do)
    if not is_launched() and any(context.step_type(step) is ChatConf for step in context.steps):
        found = f"has chat, but the processes of distributed={conf['name']} can't read the terminal"
        yield Problem("pipeline", found, do="Run chat in a separate command, with distributed=none")
    if conf["nodes"] > 1:
        yield from _nodes(context, conf)


def _nodes(context: Context, conf: dict[str, Any]) -> Iterator[Problem]:
    """Problems of a run on several machines, which all get the same command."""
    host, _, port = str(conf["address"] or "").rpartition(":")
    if not host or not port.isdigit():
        found = f"found {shown(conf['address'])}, but {conf['nodes']} machines have to connect"
        yield Problem("distributed.address", found, "Allowed: host:port of the machine with distributed.rank=0")
    if conf["rank"] >= conf["nodes"]:
        yield Problem("distributed.rank", f"found {conf['rank']}", f"Allowed: 0 to {conf['nodes'] - 1}, a different one on each machine")
    if context.in_sweep:
        yield Problem("-m", f"a sweep with distributed.nodes={conf['nodes']}", do="Start the jobs one by one")
    elif not context.user_set(KEY):
        found = f"not set, so each of {conf['nodes']} machines would name a directory after its own clock"
        yield Problem(KEY, found, do="Set it to a directory that all of them share")


def check_output(context: Context) -> Iterator[Problem]:
    """A problem if the run can't write to `output_dir`. In a sweep, Hydra gives each job its own directory.

    Only the first of several processes checks, since it is the only one that writes: the others might find its files.
    """
    wanted = context.get(KEY)
    if not isinstance(wanted, str) or context.in_sweep or rank() != 0 or context.get("distributed.rank"):
        return
    try:
        yield from _problems(context, wanted, Path(wanted).expanduser())
    except OSError as error:
        yield Problem(KEY, f"'{wanted}' can't be reached: {error.strerror}", do=_OTHER)


def _problems(context: Context, wanted: str, directory: Path) -> Iterator[Problem]:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        what = "is a file" if existing == directory else f"can't be created: {existing} is a file"
        yield Problem(KEY, f"'{wanted}' {what}", do=_OTHER)
    elif not os.access(existing, os.W_OK | os.X_OK) or os.statvfs(existing).f_flag & os.ST_RDONLY:
        yield Problem(KEY, f"'{wanted}' can't be written: permission denied for {existing}", do=_OTHER)
    elif _is_full(existing):
        yield Problem(KEY, f"'{wanted}' can't be written: the disk is full", do=f"Free some space, or {_OTHER[0].lower()}{_OTHER[1:]}")
    elif not _resumes(context) and (held := holder(directory)) is not None:
        yield held
    elif (directory / "run.json").exists() and not _resumes(context):
        do = f"{_OTHER}, or continue that run: training.resume_from_checkpoint=true"
        yield Problem(KEY, f"'{wanted}' contains another run", do=do)


def _is_full(directory: Path) -> bool:
    usage = shutil.disk_usage(directory)
    return usage.total > 0 and usage.free < _LEAST_FREE_BYTES  # a filesystem without a size, such as /proc, isn't full


def _resumes(context: Context) -> bool:
    trains = [step for step in context.steps if context.trains(step)]
    wanted = [context.get(f"{context.part(step, 'training')}.resume_from_checkpoint") for step in trains]
    if context.get("auto_resume"):
        return True
    return any(value not in (None, False) for value in wanted)

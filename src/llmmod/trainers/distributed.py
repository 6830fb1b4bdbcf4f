"""Several processes: start them by torch's elastic launcher, as torchrun does, and tell the trainer which engine joins them.

When one of them fails, the launcher ends the others. A signal to the parent goes to all of them, and they get the time to finish their
step and to write a checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from llmmod.config.schema.distributed import DeepspeedConf, DistributedConf
from llmmod.errors import ConfigError, Problem

_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
_SAVING_S = 600  # for a step and a checkpoint after a signal; TORCH_ELASTIC_SHUTDOWN_TIMEOUT says otherwise
_MEETING_S = 900  # for all machines to come


@dataclass
class Ended:
    """How processes ended.

    Args:
        signal: the number of the signal that ended them, by way of the parent.
        failures: rank -> exit code, negative for a signal's number, in the order in which they were seen.
    """

    signal: int | None = None
    failures: Mapping[int, int] = field(default_factory=dict)


def processes_of(conf: DistributedConf, *, use_cpu: bool) -> int:
    """How many processes this machine starts: `distributed.processes`, else one for each GPU, and one where there is none.

    Args:
        conf: `distributed.*`.
        use_cpu: `training.use_cpu`.

    Raises:
        ConfigError: there are fewer GPUs, or the engine needs several processes.
    """
    gpus = 0 if use_cpu or not torch.accelerator.is_available() else torch.accelerator.device_count()
    count = conf.processes or max(1, gpus)
    key = "distributed.processes"
    if gpus and count > gpus:
        do = "Start one process for each, or train on the CPU: training.use_cpu=true"
        raise ConfigError(Problem(key, f"{count}, and this machine has {gpus} GPU{'s' * (gpus > 1)}", do=do))
    if conf.name == "fsdp" and not gpus:
        raise ConfigError(Problem("distributed", "fsdp, and this machine has no GPU", do="Use distributed=ddp"))
    if count * conf.nodes == 1 and conf.name != "ddp" and not gpus:
        raise ConfigError(Problem(key, f"1, and distributed={conf.name} divides a model among several processes", do="Set it to 2 or more"))
    return count


def engine_arguments(conf: DistributedConf) -> dict[str, Any]:
    """The arguments of transformers.TrainingArguments for the engine that `distributed.name` says; empty for none and ddp."""
    if conf.name == "fsdp":
        return {"fsdp": True, "fsdp_config": {name: value for name, value in asdict(conf.fsdp).items() if value is not None}}
    if conf.name.startswith("deepspeed"):
        return {"deepspeed": deepspeed_config(conf.deepspeed, stage=3 if conf.name == "deepspeed_zero3" else 2)}
    return {}


def deepspeed_config(conf: DeepspeedConf, *, stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration. transformers fills in what is "auto" from the trainer's arguments and the model.

    Args:
        conf: `distributed.deepspeed`.
        stage: of ZeRO, 2 or 3.
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
        stage3 = {name: value for name, value in asdict(conf).items() if name.startswith("stage3_")}
        zero |= {name: "auto" if value is None else value for name, value in stage3.items()}
    for name in ("offload_optimizer", "offload_param") if stage == 3 else ("offload_optimizer",):
        if (device := getattr(conf, name)) != "none":
            zero[name] = {"device": device, "pin_memory": conf.pin_memory} | ({"nvme_path": conf.nvme_path} if device == "nvme" else {})
    of_trainer = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    composed: dict[str, Any] = {"zero_optimization": zero, "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}} | dict.fromkeys(
        of_trainer, "auto"
    )
    # The trainer has made its optimizer, LoRA+ included; DeepSpeed refuses one of another make with offloading unless it is told.
    composed |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return _merged(composed, conf.extra)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of keys as one; what the second says wins."""
    both = [name for name, value in over.items() if isinstance(under.get(name), dict) and isinstance(value, dict)]
    return {**under, **over, **{name: _merged(under[name], over[name]) for name in both}}


def run_processes(arguments: Sequence[str], *, conf: DistributedConf, count: int, directory: str) -> Ended:
    """Run `python <arguments>` in several processes, and wait until all have ended.

    Args:
        arguments: of Python.
        conf: `distributed.*`, for the machines that take part.
        count: how many processes this machine starts.
        directory: for the launcher's own files.
    """
    several = conf.nodes > 1
    config = LaunchConfig(
        min_nodes=conf.nodes,
        max_nodes=conf.nodes,
        nproc_per_node=count,
        run_id=conf.address or uuid.uuid4().hex,
        rdzv_backend="static" if several else "c10d",
        rdzv_endpoint=conf.address or "localhost:0",
        rdzv_configs={"rank": conf.rank, "timeout": _MEETING_S} if several else {},
        max_restarts=0,
        local_addr=None if several else "localhost",
        logs_specs=DefaultLogsSpecs(log_dir=directory),
        signals_to_handle=",".join(_SIGNALS),
        shutdown_timeout=int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SAVING_S)),
    )
    with _quiet(), _handlers_kept():
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as error:
            seen = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
            return Ended(failures={number: failure.exitcode for number, failure in seen})
        except SignalException as caught:
            return Ended(signal=int(caught.sigval))
    return Ended()


def leave_group() -> None:
    """Leave the group of processes, if this one is in one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, the launcher's loggers are silent: they repeat what the processes say, as errors of the launcher."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.")]
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Within it, the launcher sets signal handlers; afterwards, those of before are back."""
    main = threading.current_thread() is threading.main_thread()
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.Signals[name] for name in _SIGNALS)} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

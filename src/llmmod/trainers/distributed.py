"""Training with several processes: starting them, choosing the engine, and distributing the examples.

torch's elastic launcher starts them, as torchrun does. If one of them fails, the launcher ends the others. The parent forwards a signal to
all of them, and gives them time to finish their step and write a checkpoint.

At the end of an epoch the examples may not suffice for all processes. accelerate (1.15) then repeats the first ones, and their gradients
count twice. Here a process takes the remaining examples; if none remain, it takes a placeholder whose loss counts 0.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers.integrations import unset_hf_deepspeed_config

from llmmod.config.schema.distributed import DistributedConf
from llmmod.errors import ConfigError, Problem
from llmmod.signals import as_sigterm, handlers_kept, queue_again
from llmmod.upstream import require_upstream

_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
_SAVING_S = 600  # for a step and a checkpoint after a signal; TORCH_ELASTIC_SHUTDOWN_TIMEOUT overrides it
_MEETING_S = 900  # until all machines have joined
PLACEHOLDER = "placeholder"  # key in a batch whose loss counts 0
_FSDP = "ACCELERATE_USE_FSDP"


@dataclass
class Ended:
    """How processes ended.

    Args:
        signal: the number of the signal that the parent received and forwarded.
        failures: rank -> exit code (negative: a signal's number), in the order in which they were noticed.
    """

    signal: int | None = None
    failures: Mapping[int, int] = field(default_factory=dict)


def processes_of(conf: DistributedConf, *, use_cpu: bool) -> int:
    """The number of processes on this machine: `distributed.processes`, else one for each GPU, at least one.

    Args:
        conf: `distributed.*`.
        use_cpu: `training.use_cpu`.

    Raises:
        ConfigError: the machine has fewer GPUs, the engine needs several processes, or parameters are to be offloaded from no GPU.
    """
    gpus = 0 if use_cpu or not torch.accelerator.is_available() else torch.accelerator.device_count()
    count = conf.processes or max(1, gpus)
    key = "distributed.processes"
    if gpus and count > gpus:
        do = "Start one process for each, or train on the CPU: training.use_cpu=true"
        raise ConfigError(Problem(key, f"{count}, but this machine has {gpus} GPU{'s' * (gpus > 1)}", do=do))
    if count * conf.nodes == 1 and conf.name != "ddp" and not gpus:
        raise ConfigError(Problem(key, f"1, but distributed={conf.name} shards a model over several processes", do="Set it to 2 or more"))
    check_offloading(conf, use_cpu=not gpus)
    return count


def check_offloading(conf: DistributedConf, *, use_cpu: bool) -> None:
    """Refuse to offload parameters that are on the CPU already, which fails in the first step (torch 2.13).

    Raises:
        ConfigError: parameters are to be offloaded from no GPU.
    """
    if conf.name == "fsdp" and conf.fsdp.cpu_offload and (use_cpu or not torch.accelerator.is_available()):
        found = "true, but the training is on the CPU, and parameters can only be offloaded from a GPU"
        raise ConfigError(Problem("distributed.fsdp.cpu_offload", found, do="Set it to false"))


def run_processes(arguments: Sequence[str], *, conf: DistributedConf, count: int, directory: str) -> Ended:
    """Run `python <arguments>` in several processes, and wait until all have ended.

    SIGUSR2 in a job of submitit ends them as SIGTERM does; then submitit queues the job again.

    Args:
        arguments: Python's arguments.
        conf: `distributed.*`, for the participating machines.
        count: the number of processes on this machine.
        directory: the directory for the launcher's own files.
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
    ended = Ended()
    # The error that torch raises in its handler would be lost in submitit's handler of SIGCONT, which logs: Slurm sends both at once.
    with as_sigterm("SIGUSR2") as postponed, _quiet(), handlers_kept(_SIGNALS, without=["SIGCONT"]):
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as error:
            seen = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
            ended = Ended(failures={number: failure.exitcode for number, failure in seen})
        except SignalException as caught:
            ended = Ended(signal=int(caught.sigval))
    for handler in postponed if ended.signal is not None else ():
        queue_again(handler, signal.SIGUSR2)
    return ended


@contextmanager
def engine_of(args: Any) -> Iterator[None]:
    """A context in which a trainer uses the engine of its arguments; afterwards, trainers use DDP again.

    accelerate (1.15) keeps one engine for the life of a process, and allows FSDP only on accelerators, although FSDP2 works on a CPU with
    gloo. On a CPU it also doesn't tell DeepSpeed that there are other processes, which ZeRO 3 must know when the model is made.

    Args:
        args: the trainer's arguments.
    """
    if not args.fsdp and not args.deepspeed:
        yield
        return
    require_upstream(__name__)
    if args.deepspeed:
        with _deepspeed():
            yield
        return
    kept, shared = os.environ.get(_FSDP), PartialState._shared_state
    before = shared["distributed_type"]
    AcceleratorState._reset_state()
    if before == DistributedType.MULTI_CPU:
        shared["distributed_type"] = DistributedType.MULTI_XPU  # becomes FSDP; the device stays the CPU
    try:
        yield
    finally:
        AcceleratorState._reset_state()
        shared["distributed_type"] = before
        os.environ.pop(_FSDP, None)
        if kept is not None:
            os.environ[_FSDP] = kept


@contextmanager
def _deepspeed() -> Iterator[None]:
    """`engine_of` for DeepSpeed, which the trainer's arguments have switched on already: for transformers, and for accelerate."""
    if torch.distributed.is_initialized():
        import deepspeed  # type: ignore[import-not-found]

        deepspeed.init_distributed()  # takes the group that there is
    shared = PartialState._shared_state
    before = shared["distributed_type"]
    if before == DistributedType.DEEPSPEED:  # on GPUs accelerate decides early
        before = DistributedType.MULTI_GPU if shared["num_processes"] > 1 else DistributedType.NO
    try:
        yield
    finally:
        unset_hf_deepspeed_config()  # or the next model would be made in parts
        AcceleratorState._reset_state()
        shared["distributed_type"] = before
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


def gather_whole(trainer: Any) -> None:
    """Make the next `save_model` of a trainer write one whole model, even if its checkpoints are sharded."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")


class _Unused(int):
    """The index of a placeholder."""


class _Placeholder(list[Any]):
    """The example of a placeholder, alone in its batch."""


class _SharedBatches(BatchSamplerShard):  # type: ignore[misc]
    """A process's batches; in the last round of an epoch, the remaining examples, or a placeholder."""

    def __iter__(self) -> Iterator[list[int]]:
        round_: list[list[int]] = []
        for batch in self.batch_sampler:
            round_.append(batch)
            if len(round_) == self.num_processes:
                yield round_[self.process_index]
                round_ = []
        if round_:
            yield round_[self.process_index] if self.process_index < len(round_) else [_Unused(round_[0][0])]


class _Examples:
    """The examples of a dataset, with placeholders marked."""

    def __init__(self, examples: Any) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Any:
        return self._examples[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        fetch = getattr(self._examples, "__getitems__", None)
        found = [self._examples[index] for index in indices] if fetch is None else fetch([int(index) for index in indices])
        return _Placeholder(found) if isinstance(indices[0], _Unused) else found


@dataclass
class _Collator:
    """A collator that marks the batch of a placeholder."""

    collator: Any

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        batch = self.collator(list(examples))
        return {**batch, PLACEHOLDER: torch.ones(())} if isinstance(examples, _Placeholder) else batch


def shared_dataloader(trainer: Any, dataset: Any, make: Callable[..., Any], *args: Any) -> Any:
    """The data loader of a process for a training. It never repeats an example; see the module's docstring.

    Args:
        trainer: the trainer, which has the collator.
        dataset: the examples; accelerate distributes those of a stream.
        make: makes the loader of a dataset with the trainer's collator.
        args: further arguments of `make`.
    """
    if trainer.accelerator.num_processes == 1 or not hasattr(dataset, "__len__") or trainer.args.dataloader_drop_last:
        return make(dataset, *args)
    collator, trainer.data_collator = trainer.data_collator, _Collator(trainer.data_collator)
    try:
        loader = make(_Examples(dataset), *args)
    finally:
        trainer.data_collator = collator
    if type(loader.batch_sampler) is BatchSamplerShard and not loader.batch_sampler.split_batches:
        loader.batch_sampler.__class__ = _SharedBatches
    return loader


@contextmanager
def without_placeholder(trainer: Any, inputs: Any) -> Iterator[None]:
    """A context in which the mark of a placeholder is removed from a batch, and a placeholder's loss and gradient are 0."""
    if not isinstance(inputs, dict) or inputs.pop(PLACEHOLDER, None) is None:  # grpo's are lists of prompts
        yield
        return
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: compute_loss(*args, **kwargs) * 0.0
    try:
        yield
    finally:
        del trainer.compute_loss


def leave_group() -> None:
    """Leave the group of processes, if this one is in one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which the launcher's loggers are silent: they repeat the errors of the processes as the launcher's own."""
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

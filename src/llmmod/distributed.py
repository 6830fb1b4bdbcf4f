"""The rank of this process, the cores and GPUs that it may use, and the run's start time, on which all processes agree.

Under torchrun and accelerate every rank runs the whole command. They must agree on one run directory, and only rank 0 may write to it
(hydra issue 2070), so the time in its name comes from the launcher that all ranks of a machine share.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

_OF_SLURM = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")  # the cores of a task, else those of its job on this machine


def rank() -> int:
    """This process's rank, 0 for a single process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes that run this command together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Whether a launcher (torchrun, accelerate, or llmmod itself) started this process as one of a group."""
    return "RANK" in os.environ


def expected_processes(conf: Mapping[str, Any], *, use_cpu: bool) -> int:
    """The number of processes that will run a configuration together.

    Args:
        conf: `distributed.*`, as a mapping.
        use_cpu: `training.use_cpu`.
    """
    if is_launched():
        return world_size()
    if conf.get("name", "none") == "none":
        return 1
    return int(conf.get("processes") or max(1, 0 if use_cpu else gpus())) * int(conf.get("nodes") or 1)


def gpus() -> int:
    """The number of NVIDIA GPUs of this machine that a process may use, counted without torch."""
    try:
        found = len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if allowed is None else min(found, len([number for number in allowed.split(",") if number.strip() not in ("", "-1")]))


def cores(root: Path = Path("/")) -> int:
    """The number of processor cores that this process may use: those of its affinity, or fewer by a container's quota or Slurm's limit.

    Args:
        root: the directory with `/proc` and `/sys`.
    """
    of_slurm = [int(os.environ[name]) for name in _OF_SLURM if os.environ.get(name, "").isdigit()]
    return max(1, min([_own_cores(), *of_slurm[:1], *(math.ceil(quota) for quota in _quotas(root))]))


def limit_threads() -> None:
    """Let torch, before it is imported, use as many threads as there are `cores`: it doesn't know of quotas and of Slurm's limit."""
    if (count := cores()) < _own_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(count))


def _own_cores() -> int:
    """The number of cores by this process's affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """The quotas of CPU time of this process's control group on Linux and of the groups above it, in cores.

    A container often has its own group at the top of the mount, but `/proc` has the host's path: one that doesn't exist is ignored.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system
        return
    for line in lines:
        number, controllers, group = line.split(":", 2)
        second = number == "0"  # the second version of control groups; with the first, each controller has its own groups
        if not second and "cpu" not in controllers.split(","):
            continue
        mount, parts = root / "sys/fs/cgroup" / ("" if second else "cpu"), Path(group).parts[1:]
        for directory in (mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)):
            files = ["cpu.max"] if second else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            with suppress(OSError, ValueError):  # without such a file, or with `max`, there isn't a quota
                quota, period = " ".join((directory / name).read_text(encoding="utf-8") for name in files).split()
                if int(quota) > 0:  # -1: not limited
                    yield int(quota) / int(period)


@cache
def started(form: str) -> str:
    """The start time of the run, in `strftime` form: the same in each rank of a machine, and at each call."""
    return time.strftime(form, time.localtime(_began()))


def wait_for_next_second() -> None:
    """Move the run's start time to the next second, since another run started in this one."""
    time.sleep(1 - time.time() % 1)
    started.cache_clear()
    _began.cache_clear()


@cache
def _began() -> float:
    if world_size() == 1:
        return time.time()
    import psutil

    # torchrun's agent is the parent of each of its ranks.
    return float(psutil.Process(os.getppid()).create_time())

"""Which of several processes this is, what of the machine it may use, and the moment they agree that the run began.

Under torchrun and accelerate every rank runs the whole command. They must agree on one run directory, and rank 0 alone may write to it
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


def rank() -> int:
    """This process's rank, 0 where there is one process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes run this command together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Whether a launcher (torchrun, accelerate, or llmmod itself) started this process as one of a group."""
    return "RANK" in os.environ


def expected_processes(conf: Mapping[str, Any]) -> int:
    """How many processes will run a configuration together.

    Args:
        conf: `distributed.*`, as a mapping.
    """
    if is_launched():
        return world_size()
    if conf.get("name", "none") == "none":
        return 1
    return int(conf.get("processes") or max(1, gpus())) * int(conf.get("nodes") or 1)


def gpus() -> int:
    """The GPUs of this machine that a process may use, counted without torch; 0 where none of NVIDIA's are."""
    try:
        found = len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if allowed is None else min(found, len([number for number in allowed.split(",") if number.strip() not in ("", "-1")]))


def cores(root: Path = Path("/")) -> int:
    """The processor cores that this process may use: those of its affinity, fewer in a container with a quota of CPU time.

    Args:
        root: where `/proc` and `/sys` are.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([own, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas of CPU time that Linux's control groups give this process and the groups above it, in cores.

    A container often sees its own group at the top of the mount, while `/proc` names it by the path that the host knows: a path that isn't
    there is left out.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system
        return
    for line in lines:
        number, controllers, group = line.split(":", 2)
        second = number == "0"  # the second version of control groups; with the first, each controller has groups of its own
        if not second and "cpu" not in controllers.split(","):
            continue
        mount, parts = root / "sys/fs/cgroup" / ("" if second else "cpu"), Path(group).parts[1:]
        for directory in (mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)):
            files = ["cpu.max"] if second else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            with suppress(OSError, ValueError):  # without such a file, or with `max`, there is no quota
                quota, period = " ".join((directory / name).read_text(encoding="utf-8") for name in files).split()
                if int(quota) > 0:  # -1: not limited
                    yield int(quota) / int(period)


@cache
def started(form: str) -> str:
    """When the run began, in `strftime` form: the same in each rank of a machine, and at each call."""
    return time.strftime(form, time.localtime(_began()))


def wait_for_next_second() -> None:
    """Let the run begin anew, in the next second, since another one has begun in this one."""
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

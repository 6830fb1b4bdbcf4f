"""Which of several processes this is, and the moment they agree that the run began.

Under torchrun and accelerate every rank runs the whole command. They must agree on one run directory, and rank 0 alone may write to it
(hydra issue 2070), so the time in its name comes from the launcher that all ranks of a machine share.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import cache
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

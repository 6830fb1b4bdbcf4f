"""Which of several processes this is, and the moment they agree that the run began.

Under torchrun and accelerate every rank runs the whole command. They must agree on one run directory, and rank 0 alone may write to it
(hydra issue 2070), so the time in its name comes from the launcher that all ranks of a machine share.
"""

from __future__ import annotations

import os
import time
from functools import cache


def rank() -> int:
    """This process's rank, 0 where there is one process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes run this command together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@cache
def started(form: str) -> str:
    """When the run began, in `strftime` form: the same in each rank of a machine, and at each call."""
    return time.strftime(form, time.localtime(_began()))


@cache
def _began() -> float:
    if world_size() == 1:
        return time.time()
    import psutil

    # torchrun's agent is the parent of each of its ranks.
    return float(psutil.Process(os.getppid()).create_time())

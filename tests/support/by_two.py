"""Runs with two processes; as a script, this file is each of them."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # for gradients.py


def by_two(runs, cache, python, *, curves=True):
    """The stderr of two processes that together do these runs, one after the other; a run is a list of overrides.

    `python` is the beginning of the commands of torchrun and of what it starts: `[sys.executable]`, or the fixture `warm_python`. Without
    `curves`, none are drawn, and no report is written.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [*python, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command = [*torchrun, *python[1:], __file__, json.dumps([curves, runs])]
    # One thread each, as torchrun sets by default: with two, four threads wait for each other on two cores, which takes five times as long.
    environment = {**os.environ, "LLMMOD_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-20_000:]  # torchrun's own account of the failure comes last
    return done.stderr


def varied(completion_ids, **columns):
    """A reward that differs between completions, also for an untrained model."""
    return [sum(ids) % 17 / 7 for ids in completion_ids]


class OneDies:
    """A step that replaces another one and kills the second process of a run with seed=2."""

    def __init__(self, conf, name):
        self.name = name

    def run(self, session):
        from llmmod.distributed import rank
        from llmmod.protocols import StepReport

        if session.root.seed == 2 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return StepReport({"processes": float(os.environ["WORLD_SIZE"])})


if __name__ == "__main__":
    faulthandler.enable()
    gc.disable()  # garbage collection takes a quarter of the import's time
    import llmmod
    from llmmod.pipeline import run
    from llmmod.reuse import fingerprint
    from llmmod.trainers.callbacks import progress

    gc.freeze()
    gc.enable()
    fingerprint._own_code = lambda: "ours"  # a checkout may change while tests run
    drawn, runs = json.loads(sys.argv[1])
    if not drawn:
        progress._draw = run.write_report = lambda *_: None
    for overrides in runs:
        llmmod.run(llmmod.compose(overrides))
        gc.freeze()  # each training collects garbage, and would scan what the runs before it left in caches

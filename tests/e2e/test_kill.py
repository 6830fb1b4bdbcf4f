"""Trainings that are killed by SIGKILL at random moments and restarted: a sample of the cells of benchmarks/kill.py."""

from __future__ import annotations

import os
import subprocess

import pytest
from cells import FILE

CELLS = ("sft lora streamed packed mixed", "kto qlora plain", "ppo full plain")


@pytest.mark.slow
def test_a_killed_and_restarted_run_ends_like_an_uninterrupted_one(warm_python):
    command = [*warm_python, str(FILE.with_name("kill.py")), str(len(CELLS)), "--events", "--seed", "2", "--only", *CELLS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
    print(done.stdout, done.stderr[-2000:])
    lines = done.stdout.splitlines()
    assert [line.rpartition(": ")[2] for line in lines[:-1]] == ["the same"] * len(CELLS)
    assert lines[-1] == f"{len(CELLS)} of {len(CELLS)} killed runs ended with the bytes of the run that was left alone"

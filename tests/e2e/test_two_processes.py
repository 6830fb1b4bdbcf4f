"""Several stages by two processes together: they train, they agree on what is reused, and the first alone writes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint import checkpoint, overrides_of, rows

__all__ = ["checkpoint", "rows"]


@pytest.mark.slow
def test_sft_then_ppo_and_again(checkpoint, rows, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command += [str(Path(__file__).with_name("two_processes.py")), str(tmp_path), "experiment=rlhf", *overrides_of(checkpoint, rows)]
    command += ["pipeline=[sft,ppo]", "~steps.ppo.training.reward.step", "steps.sft.dataset=null", "steps.ppo.dataset=null"]
    command += ["steps.sft.training.max_steps=2", "steps.ppo.training.max_steps=4", "steps.ppo.training.max_completion_length=4"]
    command += [f"steps.{step}.training.per_device_train_batch_size=1" for step in ("sft", "ppo")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "LLMMOD_CACHE": str(tmp_path / "cache")}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sft, ppo = json.loads((tmp_path / "two" / "run.json").read_text())["steps"]
    assert (sft["reused_from"], "reused_from" in ppo) == (str(tmp_path / "one" / "sft"), False)
    assert done.stderr.count("sft: reused") <= 1
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert first["sft/train_loss"] == second["sft/train_loss"]
    assert second["ppo/train_runtime"] != first["ppo/train_runtime"]

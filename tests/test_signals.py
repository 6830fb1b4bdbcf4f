"""Processes that hang: how long their launcher waits after a signal."""

from __future__ import annotations

import signal
import subprocess
import time

import psutil
import pytest

# A process that waits in C doesn't run Python's signal handlers. Here it waits for its own lock, like a collective for a missing peer.
RANK = """
import ctypes, sys
from pathlib import Path
from llmmod.distributed import rank
from llmmod.pipeline.run import _signals_as_interrupts
from llmmod.signals import note_signal
with _signals_as_interrupts():
    if sys.argv[2] == "one notices" and rank() == 0:
        note_signal()
    Path(sys.argv[1], f"ready-{rank()}").touch()
    lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    while True:
        library.pthread_mutex_lock(lock)
"""
PARENT = f"""
import sys
from pathlib import Path
from llmmod.config.schema.distributed import DistributedConf
from llmmod import signals
from llmmod.trainers.distributed import run_processes
directory, case, signals._NOTICE_S = sys.argv[1], sys.argv[2], float(sys.argv[3])
signals.SAME_WISH_S = 0.5  # less than the test waits for its second signal
with signals.killed_if_hung(Path(directory)):
    ended = run_processes(["-c", {RANK!r}, directory, case], conf=DistributedConf(name="ddp"), count=2, directory=directory)
sys.exit(128 + ended.signal)
"""


@pytest.mark.parametrize("case", ["none notices", "one notices"])
def test_hung_processes_are_killed_by_a_second_signal_or_where_none_notices_the_first(case, warm_python, tmp_path):
    with subprocess.Popen([*warm_python, "-c", PARENT, str(tmp_path), case, "0.5"], stderr=subprocess.PIPE, text=True) as parent:
        while len(list(tmp_path.glob("ready-*"))) < 2:
            assert parent.poll() is None, parent.stderr.read()
            time.sleep(0.05)
        hung = [process for process in psutil.process_iter() if named(process, tmp_path)]
        assert len(hung) == 2
        parent.send_signal(signal.SIGTERM)
        if case == "one notices":
            with pytest.raises(subprocess.TimeoutExpired):  # it may save a checkpoint
                parent.wait(timeout=1)
            parent.send_signal(signal.SIGTERM)
        assert parent.wait(timeout=60) == 128 + signal.SIGTERM
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in hung)


def named(process, directory):
    """Whether the launcher started this process."""
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return str(directory) in line and RANK in line

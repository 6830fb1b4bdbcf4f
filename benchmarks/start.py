"""The cost of the main job before its trainer starts: imports, the configuration, tokenizer, data, model and adapter.

    python benchmarks/start.py

The job is started four times with one cache, and ended when its trainer is about to begin. The script prints the CPU seconds of the first
start, when the cache is empty, and the median of the others.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from measure import machine, measure, median

STARTS = 4
# Trainers call this before they evaluate for the first time.
ENDS = """
import os, time
from transformers import TrainerCallback

class Ends(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        print(f"started after {time.process_time():.2f} CPU s", flush=True)
        os._exit(0)
"""


def start(directory: Path, number: int) -> float:
    """CPU seconds of the main job until its trainer begins.

    Args:
        directory: for the cache and the runs.
        number: of the run.

    Raises:
        RuntimeError: the job failed before that.
    """
    (directory / "ends.py").write_text(ENDS, encoding="utf-8")
    callback = ["--allow", "ends", "+training.callbacks.ends={_target_: ends.Ends}"]
    environment = {"LLMMOD_CACHE": str(directory / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "llmmod", *callback, f"output_dir={directory / str(number)}"]
    output = measure(command, cwd=directory, env=environment).output
    found = re.search(r"started after ([\d.]+) CPU s", output)
    if found is None:
        raise RuntimeError(output[-2000:])
    return float(found[1])


def main() -> None:
    """Print the median and the first."""
    print(machine())
    with tempfile.TemporaryDirectory() as directory:
        first, *others = (start(Path(directory), number) for number in range(STARTS))
    print(f"the start of the main job: {median(others):.2f} CPU s; {first:.2f} with an empty cache")


if __name__ == "__main__":
    main()

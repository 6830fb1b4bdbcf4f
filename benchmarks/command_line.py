"""The cost of the command line before a run: `--help`, `--cfg job`, and the refusal of a misspelt key.

    python benchmarks/command_line.py [runs]

Each command runs eleven times, in turn with `import hydra` in the same Python. The table has the median CPU seconds, the median of the
ratios to the `import hydra` of the same turn, which depend less on the load of the machine, and whether the command imported torch (python
-X importtime names every module). One turn before the first fills Python's cache of compiled modules, which an installed llmmod has.
"""

from __future__ import annotations

import sys
import tempfile

from measure import machine, measure, median

COMMANDS = {
    "--help": ["--help"],
    "--cfg job": ["--cfg", "job"],
    "a misspelt key": ["training.learning_ratee=1e-4"],
}
BASE = "import hydra"
RUNS = 11


def main(runs: int = RUNS) -> None:
    """Print the table."""
    print(machine())
    with tempfile.TemporaryDirectory() as cache:
        environment = {"PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
        commands = {BASE: [sys.executable, "-c", BASE]}
        commands |= {name: [sys.executable, "-m", "llmmod", *arguments] for name, arguments in COMMANDS.items()}
        commands["import torch"] = [sys.executable, "-c", "import torch"]
        turns = [{name: measure(command, env=environment).cpu_s for name, command in commands.items()} for _ in range(runs + 1)][1:]
        print(f"{'command':16}{'CPU s':>8}{'ratio':>8}  torch imported")
        for name, command in commands.items():
            seconds, ratio = median([turn[name] for turn in turns]), median([turn[name] / turn[BASE] for turn in turns])
            traced = measure([command[0], "-X", "importtime", *command[1:]], env=environment).output
            torch = any(line.rsplit("|", 1)[-1].strip() == "torch" for line in traced.splitlines() if line.startswith("import time:"))
            print(f"{name:16}{seconds:8.2f}{ratio:8.2f}  {'yes' if torch else 'no'}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

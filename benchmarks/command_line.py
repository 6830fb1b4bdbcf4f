"""What the command line costs before any work begins: `--help`, `--cfg job`, and the refusal of a misspelt key.

    python benchmarks/command_line.py

Each command runs five times, in turn; the median CPU seconds are printed, beside those of `import torch` in the same Python, and
whether the command imported torch (python -X importtime names every module).
"""

from __future__ import annotations

import sys

from measure import machine, measure, median

COMMANDS = {
    "--help": ["--help"],
    "--cfg job": ["--cfg", "job"],
    "a misspelt key": ["training.learning_ratee=1e-4"],
}
RUNS = 5


def main() -> None:
    """Print the table."""
    print(machine())
    commands = {name: [sys.executable, "-m", "llmmod", *arguments] for name, arguments in COMMANDS.items()}
    commands["import torch (for comparison)"] = [sys.executable, "-c", "import torch"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(RUNS):
        for name, command in commands.items():
            seconds[name].append(measure(command).cpu_s)
    print(f"{'command':32}{'CPU s':>8}  torch imported")
    for name, command in commands.items():
        traced = measure([command[0], "-X", "importtime", *command[1:]]).output
        torch = any(line.rsplit("|", 1)[-1].strip() == "torch" for line in traced.splitlines() if line.startswith("import time:"))
        print(f"{name:32}{median(seconds[name]):8.2f}  {'yes' if torch else 'no'}")


if __name__ == "__main__":
    main()

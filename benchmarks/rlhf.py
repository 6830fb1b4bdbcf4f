"""A whole RLHF run of SmolLM2 with LoRA in one command, and the same again with another learning rate for ppo alone.

    python benchmarks/rlhf.py

Prints what each step took, by the clock and in CPU seconds, and what it measured on held-out examples before and after. The second run
takes sft and rm from the first, and says so. Nothing of earlier runs is found: examples and results are kept in a directory for now.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from measure import machine, measure

AGAIN = "steps.ppo.training.learning_rate=1e-4"
# Of each step, what its training is for.
MEASURED = {"sft": ("loss", "token_accuracy"), "rm": ("loss", "accuracy", "margin"), "ppo": ("reward",), "dpo": ("loss", "rewards/margins")}


def run(place, name, experiment, *overrides):
    """Do a run, print its steps, and return what run.json says of them."""
    directory = Path(place) / name
    command = [sys.executable, "-m", "llmmod", f"experiment={experiment}", f"output_dir={directory}", *overrides]
    done = measure(command, env={"HF_HUB_OFFLINE": "1", "LLMMOD_CACHE": f"{place}/cache"})
    if done.code:
        sys.exit(done.output[-3000:])
    found = json.loads((directory / "run.json").read_text())
    print(f"\nllmmod {' '.join([f'experiment={experiment}', *overrides])}: {found['seconds']:.0f} s, {done.cpu_s:.0f} CPU s in all")
    for step in found["steps"]:
        print(f"{step['name']:8} {step['seconds']:6.0f} s {step['cpu_seconds']:6.0f} CPU s   {told(step)}")
    return found


def told(step):
    """What a step measured, and where it was taken from."""
    metrics = step["metrics"]
    names = [name for name in MEASURED.get(step["name"], ()) if f"eval_{name}_before" in metrics]
    parts = [f"{name} {metrics[f'eval_{name}_before']:.3f} before, {metrics[f'eval_{name}']:.3f} after" for name in names]
    parts += [f"{name} {metrics[name]:.1f}" for name in ("predict_rouge-l", "predict_bleu-4") if name in metrics]
    parts += ["at a KL of " + format(metrics["eval_kl"], ".2f")] if "eval_kl" in metrics else []
    return "; ".join([*parts, *([f"reused from {Path(step['reused_from']).parent.name}"] if "reused_from" in step else [])])


def main(experiment="rlhf", again=AGAIN, *overrides) -> None:
    """Both runs."""
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        run(place, "first", experiment, *overrides)
        run(place, "again", experiment, *overrides, again)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Whole RLHF runs of SmolLM2 with LoRA, each one command: the cost of each step, and held-out metrics before and after it.

    python benchmarks/rlhf.py
    python benchmarks/rlhf.py --seeds 1,2,3 --without-again steps.ppo.training.kl_coef=0.05

The script does a run for each seed, then the first one again with another learning rate for ppo; this one reuses sft and rm, and the output
says so. At the end it prints a table in Markdown for ppo, before and after: the reward, which ppo learns from, and metrics that do not
depend on the reward model. Examples and results are cached in a temporary directory, so nothing of earlier calls is reused.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from measure import machine, measure

CHANGED = "steps.ppo.training.learning_rate=1e-4"
# Two completions for each held-out prompt, so that the figures depend less on chance.
ANSWERS = ["steps.ppo.training.num_generations_eval=2"]
# Step -> the metrics that its training should improve.
MEASURED = {"sft": ("loss", "token_accuracy"), "rm": ("loss", "accuracy", "margin"), "ppo": ("reward",), "dpo": ("loss", "rewards/margins")}
# Metrics of ppo's held-out completions -> their headings in the table.
COLUMNS = {"reward": "reward", "rouge-l": "ROUGE-L", "exact": "exact, %", "words": "words", "repeated-4-grams": "repeated 4-grams, %"}


def run(place, name, experiment, *overrides):
    """Do a run, print its steps, and return its run.json."""
    directory = Path(place) / name
    command = [sys.executable, "-m", "llmmod", f"experiment={experiment}", f"output_dir={directory}", *overrides]
    done = measure(command, env={"HF_HUB_OFFLINE": "1", "LLMMOD_CACHE": f"{place}/cache"})
    if done.code:
        sys.exit(done.output[-3000:])
    found = json.loads((directory / "run.json").read_text())
    print(f"\nllmmod {' '.join([f'experiment={experiment}', *overrides])}: {found['seconds']:.0f} s, {done.cpu_s:.0f} CPU s in all")
    for step in found["steps"]:
        print(f"{step['name']:8} {step['seconds']:6.0f} s {step['cpu_seconds']:6.0f} CPU s   {summary(step)}", flush=True)
    return found


def summary(step):
    """The metrics of a step, and the run that it was reused from."""
    metrics = step["metrics"]
    names = [name for name in MEASURED.get(step["name"], ()) if f"eval_{name}_before" in metrics]
    parts = [f"{name} {metrics[f'eval_{name}_before']:.3f} before, {metrics[f'eval_{name}']:.3f} after" for name in names]
    parts += [f"{name} {metrics[name]:.1f}" for name in ("predict_rouge-l", "predict_bleu-4") if name in metrics]
    parts += ["at a KL of " + format(metrics["eval_kl"], ".2f")] if "eval_kl" in metrics else []
    return "; ".join([*parts, *([f"reused from {Path(step['reused_from']).parent.name}"] if "reused_from" in step else [])])


def table(found):
    """Rows in Markdown with the metrics of held-out completions before and after ppo.

    Args:
        found: seed -> run.json.
    """
    yield f"| ppo, seed | {' | '.join(COLUMNS.values())} | KL, nats an answer |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for seed, run_json in found.items():
        metrics = next(step["metrics"] for step in run_json["steps"] if step["name"] == "ppo")
        numbers = [f"{metrics[f'eval_{name}_before']:.2f} → {metrics[f'eval_{name}']:.2f}" for name in COLUMNS]
        yield f"| {seed} | {' | '.join(numbers)} | {metrics['eval_kl']:.2f} |"


def main() -> None:
    """Do a run for each seed, and the first one again with a change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="rlhf", help="rlhf or rlhf_dpo")
    parser.add_argument("--seeds", default="42,2")
    parser.add_argument("--again", default=CHANGED, help="what the repeated run changes")
    parser.add_argument("--without-again", action="store_true")
    parser.add_argument("overrides", nargs="*", help="further overrides of each run")
    args = parser.parse_args()
    overrides = [*(ANSWERS if args.experiment == "rlhf" else []), *args.overrides]
    seeds = args.seeds.split(",")
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        found = {seed: run(place, f"seed-{seed}", args.experiment, f"seed={seed}", *overrides) for seed in seeds}
        if not args.without_again:
            run(place, "again", args.experiment, f"seed={seeds[0]}", *overrides, args.again)
    if args.experiment == "rlhf":
        print("", *table(found), sep="\n")


if __name__ == "__main__":
    main()

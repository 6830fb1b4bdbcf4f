"""What a sweep saves compared with single launches, and how close a search and a grid get to the best loss.

    python benchmarks/sweep.py --launches 8 --rounds 3 --seeds 5

First, an 8-point LoRA grid: the CPU seconds of one sweep, and of eight launches with one job each. The jobs are rehearsals. The sweep saves
imports, and loading the tokenizer, the data and the model.

Second, two jobs with all cores, one after the other and both at once: clock and CPU seconds, in rounds over all launchers. Each job trains
a model of four layers that keeps two cores busy.

Third, a grid of 8 points and Optuna with pruning, at equal CPU seconds. A random model of two layers learns to answer each prompt with one
of four letters, which are equally frequent, and the end token. A loss below ln(4)/2 = 0.6931 nats per token is not possible. The table has
the gap between that and the best job's loss on held-out rows, in which the letters are equally frequent too.

With SGD, the learning rate has to be right within a factor of two. With AdamW, rates over more than a decade lead to the same loss, and
chance decides between them. Both grids have one rate per decade.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from pathlib import Path

from measure import machine, measure, median

BEST = math.log(4) / 2
POINTS = ["finetune.r=4,8", "finetune.learning_rate=1e-3,3e-3", "finetune.lora_alpha=8,16"]
REHEARSAL = ["smoke=true", "pipeline=[train,evaluate]"]
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
TASK = [
    "model.weights=random", "finetune=full", "dataset=json", "dataset.data_files=rows.jsonl", "dataset.val_files=held_out.jsonl",
    "pipeline=[train]", "training.max_steps=40", "training.per_device_train_batch_size=8", "training.gradient_accumulation_steps=1",
    "training.eval_strategy=steps", "training.eval_steps=8", "training.save_strategy=no",
    *(f"+model.config.{name}={value}" for name, value in TINY.items()),
]  # fmt: skip
LARGER = {**TINY, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8}
TWO = [
    "seed=1,2", "model.weights=random", "finetune=full", "dataset=json", "dataset.data_files=long.jsonl", "dataset.val_size=0",
    "pipeline=[train]", "training.max_steps=20", "training.per_device_train_batch_size=8", "training.gradient_accumulation_steps=1",
    "training.eval_strategy=no", "training.save_strategy=no", *(f"+model.config.{name}={value}" for name, value in LARGER.items()),
]  # fmt: skip
_LOCAL = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=60"]
WAYS = {
    "one after the other, in one process": ["hydra/launcher=basic"],
    "one after the other, each in a process (submitit)": [*_LOCAL, "hydra.sweeper.max_batch_size=1"],
    "at once, joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "at once, submitit": _LOCAL,
}
RATES = {"sgd": ("1e-2", "1e-1", "1", "10"), "adamw_torch": ("1e-4", "1e-3", "1e-2", "1e-1")}
SCHEDULE = "training.lr_scheduler_type=constant,cosine"
SEARCH = [
    "hydra/sweeper=llmmod_optuna", "hydra.sweeper.n_trials=16", "hydra.sweeper.pruner=median",
    "hydra.sweeper.pruner_options={n_startup_trials: 2}", "hydra.sweeper.sampler_options={n_startup_trials: 4}",
]  # fmt: skip
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def typed(arguments, directory):
    """CPU seconds of a command, on one thread."""
    return measured(arguments, directory, **ENVIRONMENT).cpu_s


def measured(arguments, directory, **environment):
    """The cost of a command; it has all cores, unless the environment says otherwise."""
    command = ["env", "--unset=OMP_NUM_THREADS", *(f"{name}={value}" for name, value in environment.items())]
    command += [sys.executable, "-m", "llmmod", *arguments]
    done = measure(command, cwd=directory, env={"LLMMOD_CACHE": str(directory / "cache")})
    if done.code != 0:
        raise RuntimeError(done.output[-2000:])
    return done


def two_jobs(rounds, directory):
    """Name of a way to run two jobs -> its medians over rounds: clock seconds, CPU seconds."""
    rows = [{"instruction": f"Say a letter, {number}. " + "word " * 40, "output": "ABCD"[number % 4] * 20} for number in range(512)]
    (directory / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = {name: [] for name in WAYS}
    for number in range(rounds):
        for place, (name, launcher) in enumerate(WAYS.items()):
            arguments = ["-m", *TWO, *launcher, f"hydra.sweep.dir=two-{number}-{place}"]
            done = measured(arguments, directory, HF_HUB_OFFLINE="1")
            found[name].append((done.wall_s, done.cpu_s))
    return {name: tuple(map(median, zip(*values, strict=True))) for name, values in found.items()}


def against_launches(launches, directory):
    """CPU seconds of the grid as one sweep, and of its jobs one by one; fewer launches than eight are scaled up."""
    sweep = typed(["-m", *POINTS, *REHEARSAL, "hydra.sweep.dir=grid"], directory)
    points = [[a, b, c] for a in _each(POINTS[0]) for b in _each(POINTS[1]) for c in _each(POINTS[2])]
    chosen = points[:: len(points) // launches][:launches]
    single = sum(typed([*point, *REHEARSAL, f"output_dir=single-{number}"], directory) for number, point in enumerate(chosen))
    return sweep, single * len(points) / len(chosen)


def _each(text):
    key, _, values = text.partition("=")
    return [f"{key}={value}" for value in values.split(",")]


def against_grid(optimizer, seed, directory):
    """The gaps of a grid and of a search to the best possible loss, at equal CPU seconds; and the search's trials, all and pruned."""
    draw, name = random.Random(seed), f"{optimizer}-{seed}"
    for file, first, count in (("rows", 0, 384), ("held_out", 384, 128)):
        letters = draw.sample("ABCD" * (count // 4), count)
        rows = [{"instruction": f"Say a letter, {first + number}.", "output": letter} for number, letter in enumerate(letters)]
        (directory / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rates = RATES[optimizer]
    common = ["-m", *TASK, f"training.optim={optimizer}", f"seed={seed}", SCHEDULE]
    seconds = typed([*common, f"training.learning_rate={','.join(rates)}", f"hydra.sweep.dir=grid-{name}"], directory)
    between = f"training.learning_rate=tag(log, interval({rates[0]}, {rates[-1]}))"
    searched = typed([*common, *SEARCH, between, f"hydra.sweep.dir=search-{name}"], directory)
    trials = jobs(directory / f"search-{name}")
    factor = searched / sum(cpu for cpu, _, _ in trials)  # the search's own CPU time is spread over its trials
    spent, within = 0.0, []
    for cpu, status, loss in trials:
        spent += cpu * factor
        if spent <= seconds:
            within.append((status, loss))
    grid = min(loss for _, _, loss in jobs(directory / f"grid-{name}"))
    found = min(loss for status, loss in within if status == "completed")
    pruned = sum(status == "pruned" for status, _ in within)
    return grid - BEST, found - BEST, len(within), pruned


def jobs(directory):
    """CPU seconds, status and held-out loss of each job, in their order."""
    found = []
    for place in sorted((d for d in directory.iterdir() if d.name.isdigit()), key=lambda d: int(d.name)):
        run = json.loads((place / "run.json").read_text(encoding="utf-8"))
        metrics = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
        found.append((sum(step["cpu_seconds"] for step in run["steps"]), run["status"], metrics["eval_loss"]))
    return found


def main():
    """Print the figures of all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launches", type=int, default=8, help="how many of the eight jobs to launch one by one; 0: skip")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the two jobs; 0: skip")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the search; 0: skip")
    given = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        if given.launches:
            sweep, single = against_launches(given.launches, Path(place))
            print(f"an 8-point LoRA grid: {sweep:.1f} CPU s as a sweep, {single:.1f} as eight launches: {sweep / single:.2f}", flush=True)
        if given.rounds:
            print("| two jobs | clock seconds | CPU seconds |\n|---|---|---|")
            for name, (wall, cpu) in two_jobs(given.rounds, Path(place)).items():
                print(f"| {name} | {wall:.1f} | {cpu:.1f} |", flush=True)
        if not given.seeds:
            return
        for optimizer in RATES:
            print(f"\nby {optimizer}\n\n| seed | grid: gap | search: gap | trials | pruned trials |\n|---|---|---|---|---|")
            gaps = []
            for seed in range(1, given.seeds + 1):
                grid, found, trials, pruned = against_grid(optimizer, seed, Path(place))
                gaps.append((grid, found))
                print(f"| {seed} | {grid:.4f} | {found:.4f} | {trials} | {pruned} |", flush=True)
            print(f"| median | {median([a for a, _ in gaps]):.4f} | {median([b for _, b in gaps]):.4f} | | |", flush=True)


if __name__ == "__main__":
    main()

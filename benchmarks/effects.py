"""Which keys of `training` have an effect: tries each field of every stage's arguments with another value than its default.

    python benchmarks/effects.py                            all fields of all stages; a table of counts in Markdown
    python benchmarks/effects.py --stage dpo kto            of these stages
    python benchmarks/effects.py dpo.ld_alpha ppo.seed      only these, with everything that differs
    python benchmarks/effects.py --sample 14 --seed 10      a sample, the stages in turn, as in tests/e2e/test_effects.py

A tiny model with random weights is trained for a few steps, once with the stage's values and once with the field changed. The script
compares the results: weights and all other files, the log, the printed lines, and the computation (how often each class of module was
called with which shapes, the arguments of torch.compile, whether processes were started). Keys that save memory or time change only the
computation. Times are left out, and so is whatever only repeats the configuration. A field passes if something differs, or if llmmod
refuses it by its name before the training.

tests/e2e/effects.yaml says which value to try if the type of a field doesn't tell, and which fields can't have an effect here, and why;
these pass only if nothing differs. Each run is a fork of one process that has imported everything, so it needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import machine
from of_effects.runs import Runs, differences
from of_effects.trials import STAGES, TABLES, Trial, baseline_of, sample, trials

CHANCE = "chance"  # a reason that begins with this: the field may or may not have an effect
PASSED = ("left", "computed", "refused", "excepted")


def even(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """A reward that differs between the completions of a random model: the share of even ids."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def verdict(trial: Trial, runs: Runs) -> tuple[str, str]:
    """The verdict on a trial, and what shows it.

    Returns:
        `left`: the results differ; `computed`: only the computation differs; `refused`; `excepted`: nothing differs, as the table says.
        Others are faults: `nothing`, `failed`, `unfit` (refused because of the value that was tried, or not by the field's name), `stale`
        (the table says that the field can't have an effect, but it has one).
    """
    seen = runs.run(trial.stage, [*baseline_of(trial), *trial.also, f"++training.{trial.name}={trial.value}"])
    if seen.refused:
        about = [problem for problem in seen.refused if trial.name in f"{problem[0]} {problem[1]}"]
        other = about and about[0][2] and trial.value not in ("true", "false")  # another value would do
        kind = "refused" if about and not other else "unfit"
        shown = "; ".join(": ".join(part for part in problem if part) for problem in about or seen.refused)
    elif seen.failed:
        kind, shown = "failed", seen.failed
    else:
        try:
            apart = differences(runs.baseline(trial), seen)
        except RuntimeError as error:
            return "unfit", str(error)
        kind = "nothing" if not apart else "computed" if apart == ["computation"] else "left"
        shown = ", ".join(apart)
    if trial.exception and (kind in ("nothing", "unfit") or trial.exception.startswith(CHANCE)):
        return "excepted", trial.exception
    return ("stale", f"{kind}: {shown}") if trial.exception and kind != "failed" else (kind, shown)


def main(chosen: argparse.Namespace) -> int:
    """Print a line for each fault and the table of counts; returns 1 if there is a fault."""
    began = time.process_time() + sum(os.times()[2:4])
    found, stale = trials()
    found = [t for t in found if t.stage in chosen.stage and (not chosen.fields or t.id in chosen.fields)]
    found = sample(found, chosen.sample, chosen.seed) if chosen.sample else found
    counts: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
    faults = [f"{TABLES.name}: {fault}" for fault in stale]
    print(machine(), file=sys.stderr)
    with tempfile.TemporaryDirectory() as directory:
        runs = Runs(Path(directory))
        for trial in found:
            kind, shown = verdict(trial, runs)
            counts[trial.stage][kind] += 1
            line = f"{kind:8} {trial.id}={trial.value}: {shown[:300]}"
            faults += [] if kind in PASSED else [line]
            print(line, file=sys.stderr, flush=True)
    kinds = [*PASSED, *sorted({kind for of_stage in counts.values() for kind in of_stage} - set(PASSED))]
    print(f"| stage | fields | {' | '.join(kinds)} |\n|---|---|{'---|' * len(kinds)}")
    for stage, of_stage in {**counts, "all": sum(counts.values(), Counter())}.items():
        if of_stage:
            print(f"| {stage} | {of_stage.total()} | {' | '.join(str(of_stage[kind]) for kind in kinds)} |")
    print("\n".join(["", *faults]))
    print(f"{time.process_time() + sum(os.times()[2:4]) - began:.0f} CPU seconds", file=sys.stderr)
    return 1 if faults else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Which keys of `training` have an effect, in Markdown.")
    parser.add_argument("fields", nargs="*", metavar="STAGE.FIELD", help="all by default")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--sample", type=int, default=0, metavar="COUNT", help="how many of them")
    parser.add_argument("--seed", type=int, default=10, help="of the sample")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "LLMMOD_ALLOW": "effects"}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same with and without a GPU
    import effects  # configurations name its reward as effects.even; __main__ would be another module

    sys.exit(effects.main(_arguments()))

"""The memory that `plan` predicts for a training, and the measured memory: a table in Markdown, with the worst cell at the end.

    python benchmarks/plan.py                       all cells: 7 stages × 4 ways, and dtype, checkpointing, packing, batches of sft
    python benchmarks/plan.py --only dpo            cells whose name contains that
    python benchmarks/plan.py --list                their names, with their numbers
    python benchmarks/plan.py --cells 0-10 --results plan.jsonl
                                                    the first eleven. The line of each cell is added to the file as soon as it has run. The
                                                    table has all lines of the file, so ranges can be run one after the other

The model has SmolLM2-135M's shape and random weights. Its weights and activations take more than the libraries, which take 0.6 GB before
the model is loaded. `plan` measures this baseline in its own process and includes it in `plan_memory_bytes`. The peak RSS includes it too:
it is the kernel's figure for the whole process of a run of two optimizer steps. Each run is a process of its own, with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

STAGES = ("pt", "sft", "rm", "dpo", "kto", "ppo", "grpo")
WAYS = ("full", "freeze", "lora", "qlora")
USUAL = (
    "model.weights=random", "training.max_steps=2", "training.eval_strategy=no", "training.save_strategy=no", "training.logging_steps=1",
    "dataset.val_files=null", "dataset.val_size=0", "dataset.max_samples=8",
)  # fmt: skip
OF_PLAN = ("steps.plan.largest=false", "steps.plan.measure_speed=false")
OF_STAGE = {
    "ppo": ("training.num_sample_answers=0", "training.num_mini_batches=1", "training.num_ppo_epochs=1", "dataset.max_samples=16"),
    "grpo": ("training.num_sample_answers=0", "dataset.max_samples=4"),
}  # fmt: skip
PACKED = ("dataset.packing=true", "dataset.cutoff_len=512", "training.per_device_train_batch_size=2", "dataset.max_samples=40")
OF_SFT = {
    "bfloat16": ("model.dtype=bfloat16",),
    "bf16 autocast": ("training.bf16=true",),
    "checkpointing": ("model.gradient_checkpointing=true",),
    "packed": PACKED,
    "packed, checkpointing": (*PACKED, "model.gradient_checkpointing=true"),
    "batch 1": ("training.per_device_train_batch_size=1", "dataset.max_samples=1"),
    "batch 24": ("training.per_device_train_batch_size=24", "dataset.max_samples=24"),
    "accumulated": ("training.gradient_accumulation_steps=4", "dataset.max_samples=32"),
}  # fmt: skip


def cells() -> dict[str, tuple[str, ...]]:
    """Name -> overrides."""
    found = {}
    for stage in STAGES:
        for way in WAYS:
            found[f"{stage} {way}"] = (f"stage={stage}", f"finetune={way}", *OF_STAGE.get(stage, ()))
    for name, overrides in OF_SFT.items():
        for way in ("full", "lora"):
            found[f"sft {way}, {name}"] = ("stage=sft", f"finetune={way}", *overrides)
    return found


def run(overrides: tuple[str, ...], pipeline: str, directory: Path) -> tuple[int, int, str]:
    """The peak RSS in bytes, the exit code and the output of a run in a process of its own."""
    command = [sys.executable, "-m", "llmmod", *USUAL, *overrides, f"pipeline=[{pipeline}]", f"output_dir={directory}"]
    log = directory.with_suffix(".log")
    with log.open("w", encoding="utf-8") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), 1), (os.POSIX_SPAWN_DUP2, file.fileno(), 2)]
        child = os.posix_spawn(sys.executable, command, environment, file_actions=actions)
        _, status, used = os.wait4(child, 0)
    return used.ru_maxrss * 1024, os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace")


def measured(name: str, overrides: tuple[str, ...], peaks: dict[str, int]) -> dict[str, object]:
    """A cell's line: `planned` and `measured` bytes, or `failed` with the last line that its process printed."""
    with tempfile.TemporaryDirectory() as place:
        _, code, said = run((*overrides, *OF_PLAN), "plan", Path(place) / "plan")
        if not code and name not in peaks:
            peak, code, said = run(overrides, "train", Path(place) / "train")
            peaks |= {} if code else {name: peak}
        if code:
            return {"cell": name, "failed": " ".join(said.strip().splitlines()[-1:])}
        planned = json.loads((Path(place) / "plan" / "metrics.json").read_text(encoding="utf-8"))["plan_memory_bytes"]
        return {"cell": name, "planned": planned, "measured": peaks[name]}


def show(lines: list[dict[str, object]]) -> int:
    """Print the table, how many cells are within 10 %, and the worst one; returns 1 if a run failed."""
    print("| training | planned GB | measured GB | planned / measured |\n|---|---|---|---|")
    ratios = {}
    for line in lines:
        if "failed" in line:
            print(f"| {line['cell']} | failed: {line['failed']} | | |")
            continue
        planned, peak = float(str(line["planned"])), float(str(line["measured"]))
        ratios[line["cell"]] = planned / peak
        print(f"| {line['cell']} | {planned / 1e9:.2f} | {peak / 1e9:.2f} | {planned / peak:.3f} |")
    if ratios:
        worst = max(ratios, key=lambda name: abs(ratios[name] - 1))
        within = sum(abs(ratio - 1) <= 0.1 for ratio in ratios.values())
        failed = len(lines) - len(ratios)
        print(f"\n{within} of {len(ratios)} within 10 %; the worst is {worst}: {ratios[worst]:.3f}; {failed} failed.")
    return int(len(ratios) < len(lines))


def main() -> int:
    """Run the chosen cells, and print the table; returns 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--cells", default="", help="cells by their numbers, from 0: 7, or 0-10, both included")
    parser.add_argument("--list", action="store_true", help="only print numbers and names")
    parser.add_argument("--measured", type=Path, help="a file of measured peaks to read and extend: what it has is not run again")
    parser.add_argument("--results", type=Path, help="a file that each cell's line is appended to")
    asked = parser.parse_args()
    first, _, last = asked.cells.partition("-")
    numbers = range(int(first), int(last or first) + 1) if first else range(len(cells()))
    chosen = {name: overrides for n, (name, overrides) in enumerate(cells().items()) if n in numbers and asked.only in name}
    if asked.list:
        print("\n".join(f"{number:2d}  {name}" for number, name in enumerate(cells()) if name in chosen))
        return 0
    peaks = json.loads(asked.measured.read_text(encoding="utf-8")) if asked.measured and asked.measured.exists() else {}
    lines = {}
    if asked.results and asked.results.exists():
        lines = {line["cell"]: line for line in map(json.loads, asked.results.read_text(encoding="utf-8").splitlines())}
    for name, overrides in chosen.items():
        lines[name] = measured(name, overrides, peaks)
        print(json.dumps(lines[name]), flush=True)
        if asked.results:
            with asked.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[name]) + "\n")
        if asked.measured:
            asked.measured.write_text(json.dumps(peaks, indent=1), encoding="utf-8")
    return show(list(lines.values()))


if __name__ == "__main__":
    raise SystemExit(main())

"""What `plan` says of a training's memory, and what the training took: a table in Markdown, the worst cell at the end.

    python benchmarks/plan.py                       all cells: 7 stages × 4 ways, and dtype, checkpointing, packing, batches of sft
    python benchmarks/plan.py --only dpo            cells whose name has that in it
    python benchmarks/plan.py --list                their names

The model is SmolLM2-135M's shape with random weights, in which weights and activations outweigh the 0.6 GB that the libraries take before
there is a model. That baseline is the process's own at the moment of planning, and counts in `plan_memory_bytes`, as it does in the peak
RSS, which is the kernel's for the whole process of a run of two optimizer steps. One thread; each run is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
    """Peak RSS in bytes, exit code, and the directory's output, of a run in a process of its own."""
    command = [sys.executable, "-m", "llmmod", *USUAL, *overrides, f"pipeline=[{pipeline}]", f"output_dir={directory}"]
    log = directory.with_suffix(".log")
    with log.open("w", encoding="utf-8") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), 1), (os.POSIX_SPAWN_DUP2, file.fileno(), 2)]
        child = os.posix_spawn(sys.executable, command, environment, file_actions=actions)
        _, status, used = os.wait4(child, 0)
    return used.ru_maxrss * 1024, os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace")


def main() -> int:
    """Print the table; exit code 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name has this in it")
    parser.add_argument("--list", action="store_true", help="print the names alone")
    parser.add_argument("--measured", type=Path, help="a file with what trainings took: read where it has one, else written")
    asked = parser.parse_args()
    chosen = {name: overrides for name, overrides in cells().items() if asked.only in name}
    if asked.list:
        print("\n".join(chosen))
        return 0
    print("| training | planned GB | measured GB | planned / measured |\n|---|---|---|---|", flush=True)
    ratios, failed = {}, []
    peaks = json.loads(asked.measured.read_text(encoding="utf-8")) if asked.measured and asked.measured.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        for number, (name, overrides) in enumerate(chosen.items()):
            _, code, said = run((*overrides, *OF_PLAN), "plan", Path(place) / f"plan{number}")
            if not code and name not in peaks:
                peak, code, said = run(overrides, "train", Path(place) / f"train{number}")
                shutil.rmtree(Path(place) / f"train{number}", ignore_errors=True)
                peaks |= {} if code else {name: peak}
            if code:
                failed.append(name)
                print(f"| {name} | failed: {said.strip().splitlines()[-1:]} | | |", flush=True)
                continue
            if asked.measured:
                asked.measured.write_text(json.dumps(peaks, indent=1), encoding="utf-8")
            peak = peaks[name]
            planned = json.loads((Path(place) / f"plan{number}" / "metrics.json").read_text(encoding="utf-8"))["plan_memory_bytes"]
            ratios[name] = planned / peak
            print(f"| {name} | {planned / 1e9:.2f} | {peak / 1e9:.2f} | {ratios[name]:.3f} |", flush=True)
    if ratios:
        worst = max(ratios, key=lambda name: abs(ratios[name] - 1))
        within = sum(abs(ratio - 1) <= 0.1 for ratio in ratios.values())
        print(f"\n{within} of {len(ratios)} within 10 %; the worst is {worst}: {ratios[worst]:.3f}; {len(failed)} failed.")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())

"""Whether a run that is killed and started again ends as the run that was left alone: trainings of each stage, killed at random moments.

    python benchmarks/kill.py                 fifty kills, over every stage × full, lora, qlora, and ways to read data
    python benchmarks/kill.py 5 --seed 1      five of them

A run is a process of its own, which gets SIGKILL; the same command with `training.resume_from_checkpoint=true` follows. Compared byte for
byte are the weights, the state of the optimizer, the schedule, the random states, the log and the samples; times are left out. The models
are tiny and random. tests/e2e/test_kill.py kills a few at chosen moments.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import pkgutil
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

STAGES = ("pt", "sft", "rm", "dpo", "kto", "ppo", "grpo")
WAYS = ("full", "lora", "qlora")
ONLINE = ("ppo", "grpo")
TIMES = ("runtime", "per_second", "step_time", "seconds")
STEPS = 8


class Cell(NamedTuple):
    """A training: its stage, its way to fine-tune, and how its data is read."""

    stage: str
    way: str = "lora"
    data: str = "plain"


def cells() -> list[Cell]:
    """Every stage with every way to fine-tune, and the further ways to read data with the stages that take them."""
    found = [Cell(*pair) for pair in product(STAGES, WAYS)]
    found += [Cell(stage, way, "packed") for stage, way in product(("pt", "sft"), ("full", "lora"))]
    found += [Cell(stage, "lora", "streamed") for stage in STAGES if stage not in ONLINE]
    found += [Cell(stage, "lora", data) for stage, data in product(STAGES, ("mixed", "workers"))]
    return [*found, Cell("sft", "lora", "streamed packed mixed"), Cell("sft", "lora", "streamed workers")]


def make_model(directory: Path) -> list[str]:
    """Make a tiny model and rows that each stage can take; the overrides that name them."""
    import llmmod

    made = directory / "made"
    chosen = ["model=llama", "render=chatml", "finetune=full", "smoke=true", "pipeline=[train,export]", "training.save_strategy=no"]
    llmmod.run(llmmod.compose([*chosen, f"output_dir={made}"]))
    for name, count in (("rows", 15), ("more", 9)):
        lines = [json.dumps(_row(number, name)) + "\n" for number in range(count)]
        (directory / f"{name}.jsonl").write_text("".join(lines))
    return [f"model.pretrained_model_name_or_path={made / 'export'}", "model=llama", "model.gguf_file=null", "render=chatml"]


def _row(number: int, name: str) -> dict[str, Any]:
    said = {"chosen": f"It is {number}" + ", which is a number" * (number % 3) + ".", "rejected": "No." * (1 + number % 2)}
    text = {"text": f"Of {name}, the one with the number {number} comes here. " * (1 + number % 3)}
    return {"prompt": f"What is {number} of {name}?", "response": said["chosen"], "label": number % 2 == 0, **said, **text}


def overrides(cell: Cell, directory: Path) -> list[str]:
    """The command line of a cell without its model and its output_dir."""
    rows, ways = directory / "rows.jsonl", cell.data.split()
    named = {"pt": ["text"], "sft": ["prompt", "response"], "kto": ["prompt", "response", "label"], "ppo": ["prompt"], "grpo": ["prompt"]}
    columns = named.get(cell.stage, ["prompt", "chosen", "rejected"])
    found = [
        f"stage={cell.stage}",
        f"finetune={cell.way}",
        "dataset=json",
        "dataset.val_size=3",
        "pipeline=[train]",
        "dataset.cutoff_len=96",
    ]
    if "mixed" in ways:
        parts = [f"{name}: {{data_files: {directory / name}.jsonl, weight: {weight}}}" for name, weight in (("rows", 2), ("more", 1))]
        found += [f"+dataset.mix={{{', '.join(parts)}}}", *(f"dataset.columns.{column}={column}" for column in columns)]
    else:
        found += [f"dataset.data_files={rows}", *(f"dataset.columns.{column}={column}" for column in columns)]
    found += ["dataset.streaming=true", "dataset.buffer_size=4"] if "streamed" in ways else []
    found += ["dataset.packing=true"] if "packed" in ways else []
    found += ["training.dataloader_num_workers=1"] if "workers" in ways else []
    if cell.way != "full":  # with dropout, training draws random numbers
        found += [
            "finetune.r=4",
            "finetune.lora_dropout=0.1",
            *(["training.disable_dropout=false"] if cell.stage not in ("pt", "sft") else []),
        ]
    every = {
        "max_steps": STEPS, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 4,
        "learning_rate": 1e-3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2,
    }  # fmt: skip
    found += [f"training.{name}={value}" for name, value in every.items()]
    if cell.stage in ONLINE:
        found += ["training.max_completion_length=6", "+training.reward.short={_target_: llmmod.rewards.brevity, limit: 8}"]
    if cell.stage == "grpo":
        found += ["training.num_generations=2", "training.steps_per_generation=4", "training.num_iterations=2"]
    if cell.stage == "ppo":
        found += ["training.num_mini_batches=2", "training.num_ppo_epochs=2"]
    return found


def start(command: list[str], log: Path, *, before: Callable[[], None] | None = None) -> int:
    """Start a run in a process of its own, which has imported everything already; its number.

    Args:
        command: overrides.
        log: what it says is added there.
        before: called in the process first.
    """
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        if before is not None:
            before()
        import llmmod

        llmmod.run(llmmod.compose(command))
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def ended(process: int, *, within_s: float | None = None) -> int | None:
    """How a process ended, as `os.waitstatus_to_exitcode` says it; None: it still runs after that time."""
    limit = None if within_s is None else time.monotonic() + within_s
    while True:
        done, status = os.waitpid(process, 0 if limit is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if limit is not None and time.monotonic() > limit:
            return None
        time.sleep(0.002)


def left(run: Path) -> dict[str, Any]:
    """What a run left, by name, without times and without the name of its directory."""
    import torch

    found: dict[str, Any] = {}
    train = run / "train"
    for path in sorted(path for path in train.rglob("*") if path.is_file()):
        name = str(path.relative_to(train))
        if path.suffix in (".pt", ".pth"):
            found[name] = _without_times(torch.load(path, weights_only=False))
        elif path.name == "trainer_state.json":
            found[name] = _without_times(json.loads(path.read_text().replace(str(run), "")))
        elif path.suffix not in (".png",) and path.name != "manifest.json":
            found[name] = path.read_bytes().replace(str(run).encode(), b"")
    metrics = json.loads((run / "metrics.json").read_text())
    return found | {"metrics.json": _without_times(metrics)}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(inner) for name, inner in value.items() if not any(part in str(name) for part in TIMES)}
    return [_without_times(inner) for inner in value] if isinstance(value, list | tuple) else value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what differs between two runs."""
    return [
        *sorted(one.keys() ^ other.keys()),
        *(where for name in one.keys() & other.keys() for where in _differ(one[name], other[name], name)),
    ]


def _differ(one: Any, other: Any, where: str) -> Iterator[str]:
    import numpy
    import torch

    if type(one) is not type(other):
        yield where
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif isinstance(one, numpy.ndarray):
        if not numpy.array_equal(one, other):
            yield where
    elif isinstance(one, dict) and one.keys() == other.keys():
        for name in one:
            yield from _differ(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _differ(*pair, f"{where}[{number}]")
    elif one != other:
        yield where


def import_everything() -> None:
    """So that the runs need not."""
    import llmmod

    gc.disable()
    for module in pkgutil.walk_packages(llmmod.__path__, "llmmod."):
        if not module.name.startswith(("llmmod.devtools", "llmmod.__main__")):
            importlib.import_module(module.name)
    gc.freeze()
    gc.enable()


def main(kills: int, seed: int, only: str) -> int:
    """Print a line for each kill and their count; 1 where a run ended otherwise."""
    from measure import machine

    print(machine(), file=sys.stderr)
    draw, failed, done = random.Random(seed), 0, 0
    chosen = [cell for cell in cells() if only in " ".join(cell)]
    draw.shuffle(chosen)
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        os.environ.update({"LLMMOD_CACHE": str(directory / "cache"), "HF_HUB_OFFLINE": "1"})
        process = start_making(directory)
        assert ended(process) == 0, (directory / "making.log").read_text()
        common = json.loads((directory / "common.json").read_text())
        import_everything()
        whole: dict[Cell, tuple[float, dict[str, Any]]] = {}
        for number in range(kills):
            cell = chosen[number % len(chosen)]
            run, log = directory / f"run-{number}", directory / f"run-{number}.log"
            command = [*common, *overrides(cell, directory)]
            if cell not in whole:
                alone = directory / f"whole-{number}"
                began = time.monotonic()
                code = ended(start([*command, f"output_dir={alone}"], log))
                if code:
                    print(f"{number + 1:3} {' '.join(cell):32} does not run at all:\n{log.read_text()[-2000:]}", flush=True)
                    failed += 1
                    continue
                whole[cell] = time.monotonic() - began, left(alone)
            takes, expected = whole[cell]
            at = draw.uniform(0.45, 1.0) * takes
            process = start([*command, f"output_dir={run}"], log)
            if ended(process, within_s=at) is None:
                os.kill(process, signal.SIGKILL)
                ended(process)
            saved = sorted(path.name for path in (run / "train").glob("checkpoint-*")) if run.is_dir() else []
            again = [f"output_dir={run}", "training.resume_from_checkpoint=true"]
            code = ended(start([*command, *again], log))
            wrong = differences(left(run), expected) if code == 0 else [log.read_text()[-2000:]]
            done, failed = done + 1, failed + bool(wrong)
            said = "the same" if not wrong else f"DIFFERS: {'; '.join(wrong[:6])}"
            print(
                f"{number + 1:3} {' '.join(cell):32} at {at:5.2f} of {takes:5.2f} s, {'/'.join(saved) or 'nothing saved':32} {said}",
                flush=True,
            )
    print(f"{done - failed} of {done} killed runs ended with the bytes of the run that was left alone")
    return int(failed > 0)


def start_making(directory: Path) -> int:
    """Start what makes the model: in a process of its own, since no process may fork once torch has computed in several threads."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        opened = os.open(directory / "making.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        (directory / "common.json").write_text(json.dumps(make_model(directory)))
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", nargs="?", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cells whose name has this, e.g. 'dpo lora'")
    given = parser.parse_args()
    sys.exit(main(given.kills, given.seed, given.only))

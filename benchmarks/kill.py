"""Whether a killed and restarted run ends like an uninterrupted one: trainings of each stage, killed at random moments.

    python benchmarks/kill.py                 fifty kills, over every stage × full, lora, qlora, and ways to read data
    python benchmarks/kill.py 5 --seed 1      five of them
    python benchmarks/kill.py 80 --more       combinations of those ways, and early stopping by a metric of completions

A run is a process of its own, which gets SIGKILL; then the same command runs with `training.resume_from_checkpoint=true`. The script
compares the weights, the state of the optimizer, the schedule, the random states, the log and the samples byte for byte, without times. The
models are tiny and random. tests/e2e/test_kill.py kills a few with `--events`: at a random event of the training or its files instead of a
random second, so that it is the same on any machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from forks import ended, import_everything, start, without_times
from measure import machine

STAGES = ("pt", "sft", "rm", "dpo", "kto", "ppo", "grpo")
WAYS = ("full", "lora", "qlora")
ONLINE = ("ppo", "grpo")
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


def more_cells() -> list[Cell]:
    """Combinations of the ways to read data, with each way to fine-tune in turn; and the best model by a metric of completions."""
    found = []
    for stage in STAGES:
        ways = ["mixed workers"]
        if stage not in ONLINE:
            ways += ["streamed mixed", "streamed workers", "streamed mixed workers"]
        if stage in ("pt", "sft"):
            ways += ["packed mixed", "packed workers", "packed mixed workers", "streamed packed", "streamed packed workers"]
            ways += ["streamed packed mixed workers"]
        if stage not in ("pt", "rm"):
            ways += ["best", "best mixed workers"]
        found += [Cell(stage, WAYS[number % len(WAYS)], data) for number, data in enumerate(ways, start=STAGES.index(stage))]
    found += [Cell(stage, way, data) for stage, way, data in product(STAGES, ("full", "qlora"), ("mixed", "workers"))]
    return found + [Cell(stage, way, "streamed") for stage, way in product(STAGES, ("full", "qlora")) if stage not in ONLINE]


def make_model(directory: Path) -> list[str]:
    """Make a tiny model, and rows that every stage can read; returns the overrides for the model."""
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
    if "best" in ways:  # early stopping too: a resumed training must continue its count of evaluations
        every |= {
            "eval_steps": 2,
            "save_steps": 2,
            "metric_for_best_model": "words" if cell.stage in ONLINE else "predict_rouge-l",
            "greater_is_better": True,
        }
        every |= {"load_best_model_at_end": True, "early_stopping_patience": 2, "save_total_limit": 2}
        found += [] if cell.stage in ONLINE else ["training.predict_steps=2", "generation.max_new_tokens=6"]
    found += [f"training.{name}={value}" for name, value in every.items()]
    if cell.stage in ONLINE:
        found += ["training.max_completion_length=6", "+training.reward.short={_target_: llmmod.rewards.brevity, limit: 8}"]
    if cell.stage == "grpo":
        found += ["training.num_generations=2", "training.steps_per_generation=4", "training.num_iterations=2"]
    if cell.stage == "ppo":
        found += ["training.num_mini_batches=2", "training.num_ppo_epochs=2"]
    return found


def run(command: list[str], before: Callable[[], None] = lambda: None) -> None:
    """Run a command line, after calling `before`."""
    import llmmod

    before()
    llmmod.run(llmmod.compose(command))


def kill_at_event(number: int | None, directory: Path, tell: Path) -> None:
    """Make this process kill itself before an event: a file operation in the directory, a callback, a backward pass or a rollout.

    Args:
        number: of the event, from 0; None: it is not killed.
        directory: of the run.
        tell: the file that gets the number of events so far.
    """
    from accelerate import Accelerator
    from transformers.trainer_callback import CallbackHandler

    from llmmod.trainers.online import grpo
    from llmmod.trainers.ppo import rollout

    count = 0

    def happens() -> None:
        nonlocal count
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        tell.write_text(str(count))

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and f"{directory}/" in str(args[0]):
            happens()

    def count_calls(owner: Any, name: str) -> None:
        function = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: (happens(), function(*args, **kwargs))[1])

    count_calls(CallbackHandler, "call_event")
    count_calls(Accelerator, "backward")
    count_calls(grpo, "generate_in_order")
    count_calls(rollout, "generate_in_order")
    sys.addaudithook(hook)


def left(run: Path) -> dict[str, Any]:
    """The results of a run by name, without times and without the path of its directory."""
    import torch

    found: dict[str, Any] = {}
    train = run / "train"
    for path in sorted(path for path in train.rglob("*") if path.is_file()):
        name = str(path.relative_to(train))
        if path.suffix in (".pt", ".pth"):
            found[name] = without_times(torch.load(path, weights_only=False))
        elif path.name == "trainer_state.json":
            found[name] = without_times(json.loads(path.read_text().replace(str(run), "")))
        elif path.suffix not in (".png",) and path.name != "manifest.json":
            found[name] = path.read_bytes().replace(str(run).encode(), b"")
    metrics = json.loads((run / "metrics.json").read_text())
    return found | {"metrics.json": without_times(metrics)}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of the results that differ between two runs."""
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


def main(kills: int, seed: int, only: list[str], *, by_event: bool, more: bool = False) -> int:
    """Print a line for each kill, and how many runs ended the same; returns 1 if one did not."""
    print(machine(), file=sys.stderr)
    draw, same = random.Random(seed), 0
    chosen = [cell for cell in (more_cells() if more else cells()) if any(name in " ".join(cell) for name in only)]
    draw.shuffle(chosen)
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        # One thread: if torch computes anything with several threads here, e.g. a comparison, a fork waits forever for them.
        os.environ.update({"LLMMOD_CACHE": str(directory / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
        common = directory / "common.json"
        code = ended(start(lambda: common.write_text(json.dumps(make_model(directory))), directory / "log"))
        assert code == 0, (directory / "log").read_text()
        import_everything()
        whole: dict[Cell, tuple[float, dict[str, Any]]] = {}
        for number in range(kills):
            cell = chosen[number % len(chosen)]
            command = [*json.loads(common.read_text()), *overrides(cell, directory)]
            try:
                if cell not in whole:
                    whole[cell] = _left_alone(command, directory / f"whole-{number}", by_event=by_event)
                takes, expected = whole[cell]
                at = float(draw.randrange(int(takes))) if by_event else draw.uniform(0.45, 1.0) * takes
                saved, found = _killed(command, directory / f"run-{number}", at, by_event=by_event)
                wrong = differences(found, expected)
                when = f"at {at:.4g} of {takes:.4g} {'events' if by_event else 's'}, {'/'.join(saved) or 'nothing saved'}: "
            except AssertionError as error:
                when, wrong = "", [str(error)]
            same += not wrong
            print(f"{number + 1:3} {' '.join(cell)} {when}{'the same' if not wrong else 'DIFFERS: ' + '; '.join(wrong[:6])}", flush=True)
    print(f"{same} of {kills} killed runs ended with the bytes of the run that was left alone")
    return int(same < kills)


def _left_alone(command: list[str], directory: Path, *, by_event: bool) -> tuple[float, dict[str, Any]]:
    """How long an uninterrupted run takes, in seconds or events, and its results."""
    log, tell, began = directory.with_suffix(".log"), directory.with_suffix(".events"), time.monotonic()
    before = partial(kill_at_event, None, directory, tell) if by_event else lambda: None
    code = ended(start(lambda: run([*command, f"output_dir={directory}"], before), log))
    assert code == 0, f"does not run at all:\n{log.read_text()[-2000:]}"
    return (float(tell.read_text()) if by_event else time.monotonic() - began), left(directory)


def _killed(command: list[str], directory: Path, at: float, *, by_event: bool) -> tuple[list[str], dict[str, Any]]:
    """The checkpoints that a killed run had saved, and its results after it was resumed."""
    log, first = directory.with_suffix(".log"), [*command, f"output_dir={directory}"]
    before = partial(kill_at_event, int(at), directory, directory.with_suffix(".events")) if by_event else lambda: None
    process = start(lambda: run(first, before), log)
    if ended(process, within_s=None if by_event else at) is None:
        os.kill(process, signal.SIGKILL)
        ended(process)
    saved = sorted(path.name for path in (directory / "train").glob("checkpoint-*"))
    code = ended(start(lambda: run([*first, "training.resume_from_checkpoint=true"]), log))
    assert code == 0, f"does not resume:\n{log.read_text()[-2000:]}"
    return saved, left(directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", nargs="?", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[""], help="cells whose names have one of these, e.g. 'dpo lora'")
    parser.add_argument("--events", action="store_true", help="kill at events, not at seconds")
    parser.add_argument("--more", action="store_true", help="the further combinations instead")
    given = parser.parse_args()
    sys.exit(main(given.kills, given.seed, given.only, by_event=given.events, more=given.more))

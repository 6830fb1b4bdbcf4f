"""Plan a training in seconds, without loading weights: memory by part, tokens, steps, FLOPs, and whether it fits the device.

`plan_training` does the step's work without writing files. A run on a GPU plans before it trains. If it has several processes, the first
one starts another process for that, which belongs to no group and sees no GPU: a traced trainer must not wait for the other processes.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmmod.config.schema.steps import PlanConf, Root
from llmmod.config.schema.training import reward_nodes
from llmmod.data.dataset.packing import capacity_of, lengths
from llmmod.distributed import expected_processes, rank, world_size
from llmmod.errors import ConfigError, Problem, one_line
from llmmod.files.paths import atomic_write
from llmmod.protocols import StepReport
from llmmod.steps.plan.devices import Device, device_for, measured_rate, resident_bytes
from llmmod.steps.plan.figures import SAID, PlanFigures
from llmmod.steps.plan.fit import Planner, tokens_of
from llmmod.steps.plan.trace import Rows
from llmmod.steps.preview.figures import examples_of, measured

log = logging.getLogger("llmmod.plan")
_DRAWN = 2000  # examples that are drawn in random order, an epoch at least; the largest micro-batch is traced
_STREAMED = 1000  # examples of a stream that are read
_MOST_ADVICE = 4
_FILES = ("plan.json", "plan.svg")
_LONGEST_S = 120  # of a plan in another process
_OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")  # variables


class Plan:
    """The step `plan`.

    Args:
        conf: `steps.<name>`.
        name: the name of the step and of its directory.
    """

    def __init__(self, conf: PlanConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Write `<run>/<name>/plan.json` and `plan.svg`, and report the figures.

        Raises:
            ConfigError: an error that the training would raise before it loads weights; or this process is one of several.
        """
        if world_size() > 1:
            found = f"has the step {self.name}, which needs a single process, not {world_size()}"
            raise ConfigError(Problem("pipeline", found, do="Run it alone: 'pipeline=[plan]' plans for the processes of distributed.*"))
        figures = plan_training(session, self.name, self.conf)
        session.put(SAID, figures.verdict)
        session.put("plan_picture", f"data:image/svg+xml;base64,{b64encode(figures.picture().encode()).decode()}")  # for preview.html
        directory = session.step_dir(self.name)
        contents = (json.dumps(asdict(figures) | {"total": figures.total, "fits": figures.fits}, indent=1, default=str), figures.picture())
        for file, text in zip(_FILES, contents, strict=True):
            with atomic_write(directory / file) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
        artifacts = {Path(file).suffix[1:]: f"{self.name}/{file}" for file in _FILES}
        return StepReport(figures.metrics(), artifacts, [f"{self.name}: {line}" for line in figures.lines()])


def plan_training(session: Any, step: str, conf: PlanConf, *, quick: bool = False, device: Device | None = None) -> PlanFigures:
    """The plan of a step's training.

    Args:
        session: the run's session.
        step: the training step to plan.
        conf: `steps.plan`.
        quick: leave out the time, the largest sizes, and all advice but the first, which only a reader of the plan needs.
        device: the device to plan for; None: that of `conf`, or this machine's.

    Raises:
        ConfigError: an error that the training would raise.
    """
    training, root = session.conf(step, "training"), session.root
    device = device or device_for(conf.device_memory, use_cpu=bool(training.use_cpu))
    way, processes = root.distributed.name, expected_processes(asdict(root.distributed), use_cpu=bool(training.use_cpu))
    splits, tokenizer = session.splits(step), session.tokenizer(step)
    examples, devices = examples_of(splits.train, streamed=_STREAMED), None if way == "none" else processes
    numbers = measured(splits.train, examples, training, smoke=root.smoke, packs=0, devices=devices)
    rows = rows_of(splits, training, seed=root.seed)
    notes = [] if numbers.figures.complete else [f"tokens and the largest batch come from the first {numbers.figures.examples:,} examples"]
    given = {part: session.conf(step, part) for part in ("model", "finetune", "training")}
    reward, of_reward = reward_bytes(training)
    planner = Planner(
        given, tokenizer=tokenizer, hub=root.hub, smoke=root.smoke, device=device, way=way, processes=processes, reward=reward
    )
    trace = planner.trace(rows)
    if not device.is_gpu:  # now this process has read the data and imported everything, as a training has
        planner.device = device = replace(device, baseline=resident_bytes())
    memory = planner.memory(trace)
    fits = sum(memory.values()) <= device.bytes
    parameters, trained = planner.parameters
    epochs, steps = numbers.plan.epochs, numbers.plan.steps
    # The traced step is the largest one. Others have fewer tokens, and shorter examples spend a smaller share on attention.
    in_step = sum(map(tokens_of, rows.train)) * trace.micro_batches
    tokens = None if epochs is None else round(numbers.figures.tokens * epochs)
    flops = None if tokens is None else trace.flops / max(1, in_step) * tokens
    looked = conf.largest and not quick and training.data_kind != "prompt"
    micro_batch, cutoff_len = planner.largest(rows, trace) if looked else (None, None)
    return PlanFigures(
        device=device,
        way=way,
        processes=processes,
        memory=memory,
        parameters=parameters,
        trained=trained,
        tokens=tokens,
        steps=steps,
        flops=flops,
        rate=0.0 if quick or not conf.measure_speed else measured_rate(device, hub_cache_dir=root.hub.cache_dir),
        micro_batch=micro_batch,
        cutoff_len=cutoff_len,
        advice=[]
        if fits
        else planner.advice(lambda changed: rows_of(splits, changed, seed=root.seed), most=1 if quick else _MOST_ADVICE),
        notes=[*notes, *of_reward],
    )


def warn_if_too_large(session: Any, step: str, *, bf16: bool | None = None, device: Device | None = None) -> PlanFigures | None:
    """Plan a training before it begins, and warn if it won't fit. `plan.figures.memory_explained` quotes the plan later.

    Args:
        session: the run's session.
        step: the step that trains.
        bf16: whether it computes in bfloat16; None: as `training.bf16` says.
        device: the device to plan for; None: this machine's GPU.

    Returns:
        The plan; None if planning fails, which does not stop the training, and in all processes but the first.
    """
    if rank() != 0:
        return None
    try:
        if world_size() == 1:
            figures = plan_training(session, step, PlanConf(), quick=True, device=device)
        else:
            figures = _planned_elsewhere(session, step, bf16=bf16, device=device)
    except Exception as error:  # a user's class may raise anything on fake tensors
        log.info("this training can't be planned and starts without a plan: %s", one_line(error, 200))
        log.debug("why", exc_info=error)
        return None
    session.put(SAID, figures.verdict)
    if not figures.fits:
        log.warning("this training will probably not fit: %s", session.get(SAID))
        for line in figures.advice:
            log.warning("to make it fit: %s ('pipeline=[plan]' shows other ways)", line)
    return figures


class _Inputs(NamedTuple):
    """What `plan_training` reads of a session, for another process."""

    root: Root
    parts: Mapping[str, Any]
    made_splits: Any
    made_tokenizer: Any

    def conf(self, step: str, part: str) -> Any:
        """The step's `model`, `finetune` or `training`."""
        return self.parts[part]

    def splits(self, step: str) -> Any:
        """The step's examples."""
        return self.made_splits

    def tokenizer(self, step: str) -> Any:
        """The tokenizer of the step's model."""
        return self.made_tokenizer


def _planned_elsewhere(session: Any, step: str, *, bf16: bool | None, device: Device | None) -> PlanFigures:
    """The plan of a step of several processes, made by a process that isn't one of them.

    Raises:
        RuntimeError: that process failed; the last line that it wrote.
        subprocess.TimeoutExpired: it took too long.
    """
    training = session.conf(step, "training")
    device = replace(device or device_for(None, use_cpu=bool(training.use_cpu)), here=False)
    given, parts = session.root.distributed, {part: session.conf(step, part) for part in ("model", "finetune", "training")}
    of_all = replace(given, name="ddp" if given.name == "none" else given.name, processes=world_size(), nodes=1)
    parts["training"] = replace(training, bf16=training.bf16 if bf16 is None else bf16)
    inputs = _Inputs(replace(session.root, distributed=of_all), parts, session.splits(step), session.tokenizer(step))
    with tempfile.TemporaryDirectory(prefix="llmmod-plan-") as directory:
        file = Path(directory) / "inputs.pickle"
        with file.open("wb") as opened:
            pickle.dump(sys.path, opened)
            pickle.dump((inputs, step, device), opened)
        env = {name: value for name, value in os.environ.items() if not name.startswith(_OF_LAUNCHERS)} | {"CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(file)], env=env, capture_output=True, text=True, timeout=_LONGEST_S, check=False
        )
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
        figures: PlanFigures = pickle.loads(file.with_suffix(".figures").read_bytes())
        return figures


def plan_for_others(file: Path) -> None:
    """Plan in a process of its own: read a file of `_planned_elsewhere`, and write the figures next to it."""
    with file.open("rb") as opened:
        sys.path[:] = pickle.load(opened)
        inputs, step, device = pickle.load(opened)
    gc.freeze()  # a trace collects garbage three times, and the libraries' objects would take a third of its time
    figures = plan_training(inputs, step, PlanConf(), quick=True, device=device)
    file.with_suffix(".figures").write_bytes(pickle.dumps(figures))


def rows_of(splits: Any, training: Any, *, seed: int) -> Rows:
    """The largest micro-batch of the training for a random order of the examples, and the largest batch of the evaluation.

    Args:
        splits: the examples.
        training: `training.*`.
        seed: seed of that order; the run's own order differs.
    """
    size, capacity = training.per_device_train_batch_size, capacity_of(splits.train)
    train = splits.train if hasattr(splits.train, "__len__") else examples_of(splits.train, streamed=_STREAMED)
    sizes = np.asarray(lengths(train))
    if training.data_kind == "prompt":
        size = size if getattr(training, "num_generations", None) is None else max(1, size // training.num_generations)
        size *= training.gradient_accumulation_steps if training.stage == "ppo" else 1
    order = np.random.default_rng(seed)
    chosen = np.argsort(-sizes)[:size]
    if len(sizes) > size and training.train_sampling_strategy != "group_by_length":
        whole = len(sizes) - len(sizes) % size  # as many as full micro-batches take of an epoch
        batches = np.concatenate([order.permutation(len(sizes))[:whole] for _ in range(max(1, _DRAWN // whole))]).reshape(-1, size)
        chosen = batches[sizes[batches].sum(1).argmax()]
    count = size if training.data_kind == "prompt" else len(chosen)  # prompts are drawn again until there are enough
    filled = [int(chosen[place % len(chosen)]) for place in range(count)]
    held_out: list[Mapping[str, Any]] = []
    if splits.eval is not None and training.eval_strategy != "no" and hasattr(splits.eval, "__len__"):
        count = min(training.per_device_eval_batch_size, len(splits.eval))
        held_out = [dict(splits.eval[int(number)]) for number in np.argsort(-np.asarray(lengths(splits.eval)))[:count]]
    return Rows([dict(train[number]) for number in filled], held_out, capacity)


def reward_bytes(training: Any) -> tuple[int, Sequence[str]]:
    """The size of the files of the reward models that a training names by directory, bytes; and notes on those that aren't counted."""
    size, notes = 0, []
    for node in reward_nodes(training.reward).values() if hasattr(training, "reward") else ():
        if "path" in node:
            files = [*Path(str(node["path"])).expanduser().glob("*.safetensors")]
            size += sum(file.stat().st_size for file in files)
        elif "step" in node:
            notes.append(f"the reward model of step {node['step']} is not counted")
    return size, notes


if __name__ == "__main__":
    # By the module's importable name, so that unpickled objects have the same classes.
    from llmmod.steps.plan import step

    step.plan_for_others(Path(sys.argv[1]))

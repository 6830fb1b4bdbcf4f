"""The numbers of a preview: lengths, the share of trained tokens, and the optimizer steps that the run will take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any, NamedTuple

import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from datasets import Dataset

from llmmod.data.dataset.packing import PackedDataset
from llmmod.distributed import world_size
from llmmod.render.encode import IGNORED
from llmmod.steps.preview.examples import labelled_sequences
from llmmod.trainers.arguments import SMOKE_BATCH, SMOKE_STEPS

_ROWS = 1000  # rows read at a time
STREAMED = 1000  # examples of a stream that are measured, because a stream may be endless


@dataclass(frozen=True)
class Figures:
    """The lengths of the training examples after rendering and cutting.

    Args:
        lengths: tokens of each example; of a pair, the tokens of the prompt with the longer answer.
        trained_tokens: positions with a label; in preference data, the tokens of the answers.
        complete: whether every example was counted. Of a stream, only the first ones are.
        second: tokens of the pairs' shorter answers, which `lengths` leaves out.
    """

    lengths: Sequence[int]
    trained_tokens: int
    complete: bool = True
    second: int = 0

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """All tokens. The prompt of a pair counts once."""
        return sum(self.lengths) + self.second

    @property
    def trained_share(self) -> float:
        """Trained tokens / all tokens, 0 to 1."""
        return self.trained_tokens / max(1, self.tokens)

    @property
    def median(self) -> int:
        """The median length in tokens."""
        return round(median(self.lengths)) if self.lengths else 0


def measure(examples: Any, *, complete: bool = True) -> Figures:
    """The figures of a datasets.Dataset of examples of any kind.

    Args:
        examples: one a row.
        complete: whether these are all examples.
    """
    if "prompt_ids" in examples.column_names:
        return _measure_answers(examples, complete)
    lengths: list[int] = []
    trained = 0
    for table in examples.with_format("arrow").iter(batch_size=_ROWS):
        labels = pc.list_flatten(table["labels"])
        lengths += pc.list_value_length(table["input_ids"]).to_pylist()
        trained += pc.sum(pc.not_equal(labels, IGNORED)).as_py() or 0
    return Figures(lengths, trained, complete)


def _measure_answers(examples: Any, complete: bool) -> Figures:
    """The figures of examples that have their prompt and their answers in columns of their own."""
    names = [name for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in examples.column_names]
    lengths: list[int] = []
    trained = second = 0
    for table in examples.select_columns(["prompt_ids", *names]).with_format("arrow").iter(batch_size=_ROWS):
        prompts, *answers = (pc.list_value_length(table[name]).to_pylist() for name in ("prompt_ids", *names))
        of_answers = list(zip(*answers, strict=True)) or [(0,)] * len(prompts)
        lengths += [prompt + max(found) for prompt, found in zip(prompts, of_answers, strict=True)]
        trained += sum(map(sum, of_answers))
        second += sum(sum(found) - max(found) for found in of_answers)
    return Figures(lengths, trained, complete, second)


@dataclass(frozen=True)
class Packs:
    """How examples share rows.

    Args:
        rows: the number of packed rows.
        capacity: tokens that fit into a row.
        fill: the share of positions that hold tokens, 0 to 1.
        first: for each of the first rows, the lengths of its examples.
    """

    rows: int
    capacity: int
    fill: float
    first: Sequence[Sequence[int]]


def packs_of(train: Any, shown: int) -> Packs | None:
    """How a dataset is packed, with its first `shown` rows. None where each row is one example."""
    if not isinstance(train, PackedDataset):
        return None
    return Packs(len(train), train.capacity, train.fill, [train[row]["seq_lengths"] for row in range(min(shown, len(train)))])


def examples_of(train: Any, *, streamed: int = STREAMED) -> Any:
    """The examples of a dataset, one a row, whether it packs them or not. Of a stream, the first `streamed` examples."""
    if not hasattr(train, "__len__"):
        rows = list(islice(train, streamed))
        if rows and "seq_lengths" in rows[0]:
            return Dataset.from_list(
                [{"input_ids": one.input_ids, "labels": one.labels} for row in rows for one in labelled_sequences(row)]
            )
        return Dataset.from_list(rows)
    return train.examples if isinstance(train, PackedDataset) else train


@dataclass(frozen=True)
class Plan:
    """The batches and steps of a training.

    Args:
        rows: rows of the data, each one example or packed; None: unknown, since the dataset is streamed.
        per_device: rows of a micro-batch on one device.
        accumulation: micro-batches of an optimizer step.
        devices: devices that train in parallel.
        steps: optimizer steps; None: unknown, since a streamed dataset has no `max_steps`.
        epochs: passes over the data, a fraction where training stops early; None: unknown.
    """

    rows: int | None
    per_device: int
    accumulation: int
    devices: int
    steps: int | None
    epochs: float | None

    @property
    def batch(self) -> int:
        """Rows of an optimizer step."""
        return self.per_device * self.accumulation * self.devices


def plan(conf: Any, rows: int | None, *, smoke: bool, devices: int | None = None) -> Plan:
    """The batches and steps of a training on `rows` rows, counted as by transformers' Trainer (5.23, `set_initial_training_values`).

    Args:
        conf: a StageConf, `training.*` as plain Python.
        rows: of the training data; None: streamed.
        smoke: whether this is a rehearsal.
        devices: how many train together; None: those of this process and its peers.
    """
    per_device, accumulation, max_steps = conf.per_device_train_batch_size, conf.gradient_accumulation_steps, conf.max_steps
    if smoke:
        per_device, accumulation, max_steps = min(per_device, SMOKE_BATCH), min(accumulation, SMOKE_BATCH), SMOKE_STEPS
    devices = devices or _devices(conf)
    if rows is None:
        return Plan(None, per_device, accumulation, devices, max_steps if max_steps > 0 else None, None)
    generations = getattr(conf, "num_generations", None)
    generations = min(generations, SMOKE_BATCH) if generations and smoke else generations
    an_epoch = _steps_an_epoch(conf, rows, per_device * devices, accumulation, generations)
    steps = max_steps if max_steps > 0 else math.ceil(conf.num_train_epochs * an_epoch)
    return Plan(rows, per_device, accumulation, devices, steps, steps / an_epoch)


def _steps_an_epoch(conf: Any, rows: int, together: int, accumulation: int, generations: int | None) -> int:
    """Optimizer steps of a pass over the rows.

    Args:
        conf: `training.*`.
        rows: rows of the data.
        together: rows of a micro-batch on all devices.
        accumulation: micro-batches of an optimizer step.
        generations: grpo's completions to a prompt; None for other stages.
    """
    batch = together * accumulation
    if passes := getattr(conf, "num_ppo_epochs", None):  # prompts of the first rollout fill up the last one
        return math.ceil(rows / (batch * conf.num_mini_batches)) * conf.num_mini_batches * int(passes)
    if generations:  # so many micro-batches are generated at once, and trained on `num_iterations` times
        times = conf.steps_per_generation or max(1, (conf.generation_batch_size or batch) // together)
        return math.ceil(math.ceil(rows * generations / (together * times)) * times * int(conf.num_iterations) / accumulation)
    batches = rows / together
    return max(1, math.ceil((math.floor(batches) if conf.dataloader_drop_last else math.ceil(batches)) / accumulation))


class Measured(NamedTuple):
    """All numbers of the training data."""

    figures: Figures
    packs: Packs | None
    plan: Plan


def measured(train: Any, examples: Any, conf: Any, *, smoke: bool, packs: int, devices: int | None = None) -> Measured:
    """The numbers of training data.

    Args:
        train: a dataset of any kind, packed or not, streamed or not.
        examples: its examples, from `examples_of`.
        conf: a StageConf, `training.*` as plain Python.
        smoke: whether this is a rehearsal.
        packs: rows of a packed dataset to draw, at most.
        devices: as for `plan`.
    """
    count = len(train) if hasattr(train, "__len__") else None
    return Measured(measure(examples, complete=count is not None), packs_of(train, packs), plan(conf, count, smoke=smoke, devices=devices))


def _devices(conf: Any) -> int:
    """The number of processes; with one process, its number of GPUs, among which the Trainer splits each batch."""
    return world_size() if world_size() > 1 or conf.use_cpu else max(1, torch.cuda.device_count())

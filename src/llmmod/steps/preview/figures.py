"""The numbers of a preview: lengths, what of the tokens is trained, and how many optimizer steps the run will take."""

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

from llmmod.data.dataset.certify import labelled_sequences
from llmmod.data.dataset.packing import PackedDataset
from llmmod.distributed import world_size
from llmmod.render.encode import IGNORED
from llmmod.trainers.arguments import SMOKE_BATCH, SMOKE_STEPS

_ROWS = 1000  # read together
STREAMED = 1000  # examples of a stream that are measured; it may have no end


@dataclass(frozen=True)
class Figures:
    """Of the training examples, as they are after rendering and cutting.

    Args:
        lengths: tokens of each; of a pair, of the prompt with the longer answer.
        trained_tokens: positions with a label; of answers that are compared or judged, their tokens.
        complete: whether every example was counted; of a streamed dataset only the first are.
        second: tokens of the pairs' shorter answers, which `lengths` leaves out.
    """

    lengths: Sequence[int]
    trained_tokens: int
    complete: bool = True
    second: int = 0

    @property
    def examples(self) -> int:
        """Their number."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """All of them; the prompt of a pair once."""
        return sum(self.lengths) + self.second

    @property
    def trained_share(self) -> float:
        """Of all tokens, 0 to 1."""
        return self.trained_tokens / max(1, self.tokens)

    @property
    def median(self) -> int:
        """Tokens of the example in the middle, by length."""
        return round(median(self.lengths)) if self.lengths else 0


def measure(examples: Any, *, complete: bool = True) -> Figures:
    """The figures of a datasets.Dataset of any kind.

    Args:
        examples: one a row.
        complete: whether these are all.
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
    """Of prompts whose answers are columns of their own."""
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
        rows: all of them.
        capacity: tokens of a row.
        fill: the part of all positions that holds tokens, 0 to 1.
        first: of some rows, the tokens of each example in them.
    """

    rows: int
    capacity: int
    fill: float
    first: Sequence[Sequence[int]]


def packs_of(train: Any, shown: int) -> Packs | None:
    """How a dataset is packed, with its first `shown` rows; None where each row is an example."""
    if not isinstance(train, PackedDataset):
        return None
    return Packs(len(train), train.capacity, train.fill, [train[row]["seq_lengths"] for row in range(min(shown, len(train)))])


def examples_of(train: Any, *, streamed: int = STREAMED) -> Any:
    """The examples of a dataset, one a row, whether it packs them or not; of a stream the first `streamed`, read once."""
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
    """What a training does with the rows.

    Args:
        rows: an example each, or packed ones; None: nobody knows (a streamed dataset).
        per_device: rows a device takes at once.
        accumulation: of those, how many times before an optimizer step.
        devices: that train side by side.
        steps: optimizer steps; None: nobody knows (a streamed dataset without max_steps).
        epochs: passes over the data, a fraction where it stops in the midst; None: nobody knows.
    """

    rows: int | None
    per_device: int
    accumulation: int
    devices: int
    steps: int | None
    epochs: float | None

    @property
    def batch(self) -> int:
        """Rows an optimizer step learns from."""
        return self.per_device * self.accumulation * self.devices


def plan(conf: Any, rows: int | None, *, smoke: bool) -> Plan:
    """How `training.*` goes through `rows` rows, as transformers' Trainer counts them (5.23, `set_initial_training_values`).

    Args:
        conf: a StageConf, `training.*` as plain Python.
        rows: of the training data; None: streamed.
        smoke: whether this is a rehearsal.
    """
    per_device, accumulation, max_steps = conf.per_device_train_batch_size, conf.gradient_accumulation_steps, conf.max_steps
    if smoke:
        per_device, accumulation, max_steps = min(per_device, SMOKE_BATCH), min(accumulation, SMOKE_BATCH), SMOKE_STEPS
    devices = _devices(conf)
    if rows is None:
        return Plan(None, per_device, accumulation, devices, max_steps if max_steps > 0 else None, None)
    answers = getattr(conf, "num_generations", None)
    of_each = min(answers, SMOKE_BATCH) if answers and smoke else answers
    an_epoch = _steps_an_epoch(conf, rows, per_device * devices, accumulation, of_each)
    steps = max_steps if max_steps > 0 else math.ceil(conf.num_train_epochs * an_epoch)
    return Plan(rows, per_device, accumulation, devices, steps, steps / an_epoch)


def _steps_an_epoch(conf: Any, rows: int, together: int, accumulation: int, of_each: int | None) -> int:
    """Optimizer steps of a pass over the rows.

    Args:
        conf: `training.*`.
        rows: there are.
        together: that all devices take at once.
        accumulation: of those, how many times before a step.
        of_each: answers to a prompt, where they are compared with one another.
    """
    batch = together * accumulation
    if passes := getattr(conf, "num_ppo_epochs", None):  # the last rollout is filled up with prompts of the first
        return math.ceil(rows / (batch * conf.num_mini_batches)) * conf.num_mini_batches * int(passes)
    if of_each:  # as many micro-batches are answered at once, and learnt from several times
        times = conf.steps_per_generation or max(1, (conf.generation_batch_size or batch) // together)
        return math.ceil(math.ceil(rows * of_each / (together * times)) * times * int(conf.num_iterations) / accumulation)
    batches = rows / together
    return max(1, math.ceil((math.floor(batches) if conf.dataloader_drop_last else math.ceil(batches)) / accumulation))


class Measured(NamedTuple):
    """All that is known of the training data in numbers."""

    figures: Figures
    packs: Packs | None
    plan: Plan


def measured(train: Any, examples: Any, conf: Any, *, smoke: bool, packs: int) -> Measured:
    """The numbers of training data.

    Args:
        train: a dataset of any kind, packed or not, streamed or not.
        examples: its examples, as `examples_of` has them.
        conf: a StageConf, `training.*` as plain Python.
        smoke: whether this is a rehearsal.
        packs: rows of a packed dataset that are looked at one by one, at most.
    """
    count = len(train) if hasattr(train, "__len__") else None
    return Measured(measure(examples, complete=count is not None), packs_of(train, packs), plan(conf, count, smoke=smoke))


def _devices(conf: Any) -> int:
    """Processes, or where a single one drives several GPUs, those: the Trainer then splits each batch among them."""
    return world_size() if world_size() > 1 or conf.use_cpu else max(1, torch.cuda.device_count())

"""Examples made while training asks for them: rows are read, shuffled through a buffer, rendered and encoded, and start anew at their end.

The stream has no end, so that a training resumed after n batches is where it was: transformers (5.23) skips the batches it has taken, and
would skip too few if they were more than one pass over the data. Each pass is drawn from the seed and its number.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, TypeVar

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import DatasetInfo, Features, IterableDataset
from datasets.iterable_dataset import ExamplesIterable

from llmmod.data.build import counted
from llmmod.data.forms.form import IDS
from llmmod.data.packed_stream import packed
from llmmod.data.reading.faults import Faults
from llmmod.data.splits import Counts
from llmmod.data.tokenize import Placed, Tokenizing
from llmmod.errors import DataError, Problem

log = logging.getLogger(__name__)

BATCH = 256  # records rendered and encoded together: enough for the tokenizer, and no long wait for the first of them

Item = TypeVar("Item")


@dataclass(frozen=True)
class Stream:
    """Examples without end.

    Args:
        name: of the dataset, for messages.
        rows: one pass over the records; what is wrong with bad rows is added to what it is given.
        tokenizing: how they become examples.
        buffer_size: records among which the next is drawn.
        seed: of the draw.
        skip: whether bad rows are left out.
        capacity: tokens of a row that several examples share; None: each has one of its own.
        ranked: whether a row may have ranked answers, of which several examples are made.
    """

    name: str
    rows: Callable[[Faults], Iterator[Placed]]
    tokenizing: Tokenizing
    buffer_size: int
    seed: int
    skip: bool = False
    capacity: int | None = None
    ranked: bool = False

    @property
    def schema(self) -> Any:
        """The columns of a row, as Arrow has them."""
        schema = self.tokenizing.form.schema
        return schema if self.capacity is None else schema.append(pa.field("seq_lengths", IDS))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for epoch in count():
            bad = Faults()
            made = 0
            for example in self._epoch(epoch, bad):
                made += 1
                yield example
            if not made:
                told = f"; {len(bad)} rows can't be used, the first: {bad.first[0]}" if bad else ""
                raise DataError(Problem(self.name, f"no example is left to train on{told}"))
            if epoch == 0 and bad:
                log.warning("%s: %d bad rows were left out (dataset.on_bad_row=skip), the first: %s", self.name, len(bad), bad.first[0])

    def _epoch(self, epoch: int, bad: Faults) -> Iterable[dict[str, Any]]:
        """The rows of one pass over the data."""
        rows = self.tokenizing.form.arranged(self._examples(epoch, bad))
        return rows if self.capacity is None else packed(rows, self.capacity)

    def _examples(self, epoch: int, bad: Faults) -> Iterator[dict[str, Any]]:
        sources = examples = 0
        counts = Counts()
        rows = shuffled(self.rows(bad), self.buffer_size, random.Random(f"{self.seed} {epoch}"))
        while batch := list(islice(rows, BATCH)):
            all_made = self.tokenizing.batch(batch)
            counts += counted(all_made, self.tokenizing.form) if epoch == 0 else Counts()
            for made in all_made:
                if made.fault is not None:
                    if not self.skip:
                        raise made.fault
                    bad.add(made.fault)
                found = made.rows(self.tokenizing.form)
                sources, examples = sources + bool(found), examples + len(found)
                yield from found
        for line in counts.losses(self.tokenizing.limit):
            log.warning("%s: %s", self.name, line)
        if epoch == 0 and examples > sources and self.ranked:
            log.info("%s: %d %s came of the ranked answers of %d rows", self.name, examples, self.tokenizing.form.made, sources)


def shuffled(items: Iterator[Item], buffer_size: int, draw: random.Random) -> Iterator[Item]:
    """The items, each drawn from those that fill a buffer."""
    buffer = list(islice(items, buffer_size))
    for item in items:
        place = draw.randrange(buffer_size)
        yield buffer[place]
        buffer[place] = item
    draw.shuffle(buffer)
    yield from buffer


class Streamed(IterableDataset):  # type: ignore[misc]
    """The dataset of a stream.

    Args:
        capacity: tokens of a row that several examples share; None: each has one of its own.
    """

    capacity: int | None = None


def as_dataset(stream: Stream) -> Streamed:
    """The dataset of a stream's examples; one worker of a data loader reads it, whatever their number."""
    # `IterableDataset.from_generator` would pickle tokenizer and rows for a fingerprint that nobody asks for.
    examples = ExamplesIterable(_numbered, {"stream": stream})
    dataset = Streamed(examples, info=DatasetInfo(features=Features.from_arrow_schema(stream.schema)))
    dataset.capacity = stream.capacity
    return dataset


def _numbered(stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from enumerate(stream)

"""Examples built during training: rows are read, shuffled in a buffer, rendered and encoded, and restart at their end.

The stream is endless, so that a training resumed after n batches continues at the right place: transformers (5.23) skips the batches of
the earlier part, and would skip too few if they were more than one pass over the data. The order of each pass depends on the seed and its
number. Validation examples are built at the start, from the first rows.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import DatasetInfo, Features, IterableDataset
from datasets.iterable_dataset import ExamplesIterable
from torch.utils.data import get_worker_info

from llmmod.config.schema.data import DatasetConf
from llmmod.data.dataset.builder import DatasetBuilder
from llmmod.data.dataset.packing import pack_stream
from llmmod.data.dataset.splits import DataReport, Splits, take_turns
from llmmod.data.examples.tokenize import Counts, ExampleTokenizer, LocatedRecord
from llmmod.data.examples.types import IDS
from llmmod.data.rows.records import listed
from llmmod.data.sources.reader import SMOKE_EVAL, BadRows, OpenedDataset
from llmmod.errors import ConfigError, DataError, Problem

log = logging.getLogger(__name__)

BATCH = 256  # records rendered and encoded together: enough for the tokenizer, without a long wait for the first
CHECKED = 1000  # rows after the held-out ones that are read before a model is loaded, so that most mistakes are found at once

Item = TypeVar("Item")


@dataclass(frozen=True)
class Stream:
    """An endless stream of examples.

    Args:
        name: of the dataset, for messages.
        rows: one pass over the records; it adds errors of bad rows to its argument.
        example_tokenizer: turns them into examples.
        buffer_size: records from which the next is drawn.
        seed: of the draw.
        skip: whether bad rows are left out.
        capacity: tokens of a packed row; None: not packed.
        ranked: whether a row may have ranked answers, which become several examples.
    """

    name: str
    rows: Callable[[BadRows], Iterator[LocatedRecord]]
    example_tokenizer: ExampleTokenizer
    buffer_size: int
    seed: int
    skip: bool = False
    capacity: int | None = None
    ranked: bool = False

    @property
    def schema(self) -> Any:
        """The Arrow schema of a row."""
        schema = self.example_tokenizer.example_type.schema
        return schema if self.capacity is None else schema.append(pa.field("seq_lengths", IDS))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for epoch in count():
            bad = BadRows()
            rows = self.example_tokenizer.example_type.arrange(self._examples(epoch, bad))
            is_empty = True
            for row in rows if self.capacity is None else pack_stream(rows, self.capacity):
                is_empty = False
                yield row
            if is_empty:
                why = f"; {len(bad)} rows can't be used, the first: {bad.first[0]}" if bad else ""
                raise DataError(Problem(self.name, f"no example is left to train on{why}"))
            if epoch == 0 and bad:
                log.warning("%s: %d bad rows were left out (dataset.on_bad_row=skip), the first: %s", self.name, len(bad), bad.first[0])

    def _examples(self, epoch: int, bad: BadRows) -> Iterator[dict[str, Any]]:
        """The examples' rows of one pass over the data."""
        example_type, counts, first_pass = self.example_tokenizer.example_type, Counts(), epoch == 0
        records = shuffled(self.rows(bad), self.buffer_size, random.Random(f"{self.seed} {epoch}"))
        while batch := list(islice(records, BATCH)):
            tokenized = self.example_tokenizer.tokenize(batch)
            counts += Counts.of(tokenized, example_type) if first_pass else Counts()
            for record in tokenized:
                if record.error is not None:
                    if not self.skip:
                        raise record.error
                    bad.add(record.error)
                yield from record.rows(example_type)
        for line in counts.losses(self.example_tokenizer.limit):
            log.warning("%s: %s", self.name, line)
        if self.ranked and counts.examples > counts.sources:
            made = f"{counts.examples} {example_type.plural} from the ranked answers of {counts.sources} rows"
            log.info("%s: %s", self.name, made)


def shuffled(items: Iterator[Item], buffer_size: int, draw: random.Random) -> Iterator[Item]:
    """The items, each drawn from a full buffer."""
    buffer = list(islice(items, buffer_size))
    for item in items:
        place = draw.randrange(buffer_size)
        yield buffer[place]
        buffer[place] = item
    draw.shuffle(buffer)
    yield from buffer


class StreamedDataset(IterableDataset):  # type: ignore[misc]
    """The dataset of a stream.

    Args:
        capacity: tokens of a packed row; None: not packed.
    """

    capacity: int | None = None


def as_dataset(stream: Stream) -> StreamedDataset:
    """The dataset of a stream's examples; only one worker of a data loader reads it."""
    # `IterableDataset.from_generator` would pickle tokenizer and rows for a fingerprint, which isn't needed.
    examples = ExamplesIterable(_numbered, {"stream": stream})
    dataset = StreamedDataset(examples, info=DatasetInfo(features=Features.from_arrow_schema(stream.schema)))
    dataset.capacity = stream.capacity
    return dataset


def _numbered(stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    if get_worker_info() is not None:  # the tokenizer's threads don't survive a fork, and it would wait for them
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    yield from enumerate(stream)


@dataclass(frozen=True)
class _Part:
    """A dataset whose first rows are held out.

    Args:
        opened: its rows.
        held: how many.
        asked: how many the configuration asks for; more than `held` in a rehearsal.
    """

    opened: OpenedDataset
    held: int
    asked: int

    @classmethod
    def of(cls, builder: DatasetBuilder) -> _Part:
        size = builder.opened.conf.val_size
        if size < 0 or size != int(size):
            found = f"{size:g} is a fraction, but the length of a streamed dataset is unknown"
            raise ConfigError(Problem("dataset.val_size", found, do="Give a number of examples, or val_files"))
        return cls(builder.opened, min(int(size), SMOKE_EVAL) if builder.smoke else int(size), int(size))

    def training_rows(self, bad: BadRows) -> Iterator[LocatedRecord]:
        return islice(self.opened.training.read(bad), self.held, None)

    def validation_rows(self, bad: BadRows) -> list[LocatedRecord]:
        if self.opened.validating is not None:
            bad += self.opened.validating.survey().bad
        head, read = self.opened.training.head(self.held + CHECKED, bad)
        if read <= self.asked:
            if not head:
                self.opened.training.survey()  # raises with the reason
            found = f"{self.asked} of {read} rows leaves 0 to train on"
            raise ConfigError(Problem("dataset.val_size", found, "At least one is needed on each side"))
        return [*head[: self.held], *(self.opened.validating or ())]


def stream_splits(conf: DatasetConf, builders: Sequence[DatasetBuilder], weights: Sequence[float], directory: Path) -> Splits:
    """The data of a streaming run.

    Args:
        conf: `dataset.*`.
        builders: of the dataset, or of each dataset in a mix.
        weights: of each.
        directory: for the validation examples.

    Raises:
        DataError: one of the first rows is wrong, or rows to train on are missing.
        ConfigError: `val_size` takes all rows.
    """
    first = builders[0]
    parts = [_Part.of(builder) for builder in builders]
    bad = BadRows()
    held_rows = [row for part in parts for row in part.validation_rows(bad)]
    evaluation, conversations = first.validation(held_rows, directory / "eval.arrow", bad)

    def rows(bad: BadRows) -> Iterator[LocatedRecord]:
        readers = [partial(part.training_rows, bad) for part in parts]
        return readers[0]() if len(readers) == 1 else take_turns(readers, weights, conf.mix_stopping)

    opened = [part.opened for part in parts]
    capacity = max(builder.example_tokenizer.limit for builder in builders) if conf.packing else None
    skip, ranked = opened[0].training.skip, any(one.ranks() for one in opened)
    stream = Stream(conf.name, rows, first.example_tokenizer, conf.buffer_size, first.seed, skip, capacity, ranked)
    unread = {one.conf.name: columns for one in opened if (columns := listed(one.training.format.unread))}
    report = DataReport(
        name=conf.name,
        source=", ".join(one.training.source.name for one in opened),
        format="; ".join(dict.fromkeys(str(one.training.format) for one in opened)),
        rows=len(held_rows),
        skipped=len(bad),
        cutoff_len=conf.cutoff_len,
        train=Counts(),
        eval=evaluation.counts if evaluation else Counts(),
        reasons=[str(error) for error in bad.first],
        streamed=True,
        unread="; ".join(f"{columns} in {name}" if len(opened) > 1 else columns for name, columns in unread.items()),
    )
    return Splits(as_dataset(stream), evaluation.dataset if evaluation else None, conversations, report)

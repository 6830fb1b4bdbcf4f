"""The data of a run whose training examples are made while it trains: what is held out is made at once, from rows of the beginning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from llmmod.data.examples import Making
from llmmod.data.mix import take_turns
from llmmod.data.reading.faults import Faults
from llmmod.data.reading.opened import SMOKE_EVAL, Opened
from llmmod.data.row import listed
from llmmod.data.splits import Counts, DataReport, Splits
from llmmod.data.streaming.stream import Stream, as_dataset
from llmmod.data.tokenize import Placed
from llmmod.errors import ConfigError, Problem
from llmmod.schema.data import DatasetConf

CHECKED = 1000  # rows after those held out that are read before a model is loaded, so that most mistakes are told at once


@dataclass(frozen=True)
class _Part:
    """A dataset of which the first rows are held out.

    Args:
        opened: its rows.
        held: how many.
        asked: how many the configuration asks for; more than `held` in a rehearsal.
    """

    opened: Opened
    held: int
    asked: int

    def rows(self, bad: Faults) -> Iterator[Placed]:
        """Those to train on."""
        return islice(self.opened.training.read(bad), self.held, None)

    def held_out(self, bad: Faults) -> list[Placed]:
        """Those to validate with.

        Raises:
            DataError: a row is wrong, or there are none.
            ConfigError: none would be left to train on.
        """
        if self.opened.validating is not None:
            bad += self.opened.validating.survey().bad
        head, read = self.opened.training.head(self.held + CHECKED, bad)
        if read <= self.asked:
            if not head:
                self.opened.training.survey()  # says why
            found = f"{self.asked} of {read} rows leaves 0 to train on"
            raise ConfigError(Problem("dataset.val_size", found, "At least one is needed on each side"))
        return [*head[: self.held], *(self.opened.validating or ())]


def stream_splits(conf: DatasetConf, makings: Sequence[Making], weights: Sequence[float], directory: Path) -> Splits:
    """The data of a run that streams.

    Args:
        conf: `dataset.*`.
        makings: of the dataset, or of each of several that are mixed.
        weights: of each.
        directory: where the examples to validate with are written.

    Raises:
        DataError: one of the first rows is wrong, or no row is left to train on.
        ConfigError: `val_size` takes all rows.
    """
    first = makings[0]
    parts = [_part(making) for making in makings]
    bad = Faults()
    aside = [row for part in parts for row in part.held_out(bad)]
    evaluation, conversations = first.validation(aside, directory / "eval.arrow", bad)

    def rows(bad: Faults) -> Iterator[Placed]:
        readers = [partial(part.rows, bad) for part in parts]
        return readers[0]() if len(readers) == 1 else take_turns(readers, weights, conf.mix_stopping)

    skip, ranked = parts[0].opened.training.skip, any(part.opened.ranks() for part in parts)
    stream = Stream(conf.name, rows, first.tokenizing, conf.buffer_size, first.seed, skip, _capacity(conf, makings), ranked)
    report = DataReport(
        name=conf.name,
        source=", ".join(part.opened.training.source.name for part in parts),
        format="; ".join(dict.fromkeys(str(part.opened.training.format) for part in parts)),
        rows=len(aside),
        skipped=len(bad),
        cutoff_len=conf.cutoff_len,
        train=Counts(),
        eval=evaluation.counts if evaluation else Counts(),
        reasons=[str(fault) for fault in bad.first],
        streamed=True,
        unread="; ".join(text for part in parts if (text := _unread(part.opened, named=len(parts) > 1))),
    )
    return Splits(as_dataset(stream), evaluation.dataset if evaluation else None, conversations, report)


def _unread(opened: Opened, *, named: bool) -> str:
    columns = listed(opened.training.format.unread)
    return f"{columns} in {opened.conf.name}" if columns and named else columns


def _capacity(conf: DatasetConf, makings: Sequence[Making]) -> int | None:
    return max(making.tokenizing.limit for making in makings) if conf.packing else None


def _part(making: Making) -> _Part:
    size = making.opened.conf.val_size
    if size < 0 or size != int(size):
        found = f"{size:g}, but a streamed dataset has no known length to take a fraction of"
        raise ConfigError(Problem("dataset.val_size", found, do="Give a number of examples, or val_files"))
    return _Part(making.opened, min(int(size), SMOKE_EVAL) if making.smoke else int(size), int(size))

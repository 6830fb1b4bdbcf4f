"""What `dataset.*` names, opened: records to train on, and those to validate with where they are rows of their own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from llmmod.config.schema.base import OnBadRow
from llmmod.config.schema.data import DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.rows.records import RowError
from llmmod.data.sources.choose import choose_format
from llmmod.data.sources.open import open_source
from llmmod.data.sources.reader import RecordReader, disagreed, value_types
from llmmod.data.sources.source import Source, is_streamed, needs_length
from llmmod.errors import DataError, Problem

log = logging.getLogger(__name__)

HEAD = 1000  # rows that are looked at for the columns there are
SMOKE_TRAIN, SMOKE_EVAL = 8, 4  # rows of a rehearsal
SURVEYED = 10_000  # of those on this machine that a rehearsal reads and checks, in a fifth of a second; of the hub's, HEAD


@dataclass(frozen=True)
class OpenedDataset:
    """A dataset whose rows can be read.

    Args:
        conf: what it was opened by.
        training: the records, those that `val_size` holds out among them.
        validating: held-out records that are rows of their own; None: there are none.
        kind: what a row becomes.
    """

    conf: DatasetConf
    training: RecordReader
    validating: RecordReader | None = None
    kind: str = "conversation"

    def ranks(self) -> bool:
        """Whether a row may hold more than two answers, best first: in one column, or as a function of the user's own makes them."""
        formats = [readings.format for readings in (self.training, self.validating) if readings]
        in_one_column = any("response" in f.columns and not {"label", "chosen"} & set(f.columns) for f in formats)
        return self.kind in ("preference", "judgement") and (in_one_column or any(not f.columns for f in formats))


def open_dataset(conf: DatasetConf, *, hub: HubConf, smoke: bool, kind: str = "conversation") -> OpenedDataset:
    """The rows that a configuration names.

    Args:
        conf: `dataset.*`.
        hub: how downloads are made.
        smoke: whether a few rows are enough.
        kind: what a row becomes, see `data.reading.choose`.

    Raises:
        ConfigError: no such data, columns or format.
        DataError: a file can't be read, or has no rows.
    """
    limits = [conf.max_samples, SMOKE_TRAIN + (SMOKE_EVAL if conf.val_size else 0) if smoke else None]
    limit = min((limit for limit in limits if limit is not None), default=None)
    training = _readings(conf, _open(conf, hub, smoke), kind=kind, limit=limit, smoke=smoke)
    validating = _validating(conf, hub, smoke, kind)
    return OpenedDataset(conf, training, validating, kind)


def with_values(parts: Sequence[OpenedDataset]) -> list[OpenedDataset]:
    """Datasets of prompts that become one, each with all columns that come along, of the types that they have in all of them."""
    kinds = {part.conf.name: part.training.value_kinds(HEAD) for part in parts}
    types = value_types(list(kinds.values()))
    if left_out := disagreed(kinds, types):
        log.warning("reward functions are not given columns whose values have no one type: %s", "; ".join(left_out))
    return [
        replace(part, training=replace(part.training, values=types), validating=part.validating and replace(part.validating, values=types))
        for part in parts
    ]


def _open(conf: DatasetConf, hub: HubConf, smoke: bool) -> Source:
    # A rehearsal wants a few rows of the hub's dataset, and not all of its files.
    streaming = conf.streaming or (smoke and not needs_length(conf.split))
    return open_source(conf.path, data_files=conf.data_files, subset=conf.subset, split=conf.split, hub=hub, streaming=streaming)


def _validating(conf: DatasetConf, hub: HubConf, smoke: bool, kind: str) -> RecordReader | None:
    if conf.val_files:
        builder = conf.path if conf.data_files else None
        source = open_source(builder, data_files=conf.val_files, hub=hub, key="dataset.val_files")
    elif conf.val_split:
        source = _open(replace(conf, split=conf.val_split), hub, smoke)
    else:
        return None
    return _readings(replace(conf, max_samples=None), source, kind=kind, limit=SMOKE_EVAL if smoke else None, smoke=smoke)


def _readings(conf: DatasetConf, source: Source, *, kind: str, limit: int | None, smoke: bool) -> RecordReader:
    head = [row for _, row in islice(source, HEAD) if not isinstance(row, RowError)]
    if not head:
        _refuse_headless(source)
    given = {role: column for role, column in vars(conf.columns).items() if column is not None}
    found = choose_format(conf.format, kind=kind, given=given, head=head, file=source.name)
    # A rehearsal is to find the row that would end the run, and that row is hardly one of the few it trains on; and whether there are more
    # rows than are to be held out.
    enough = max(HEAD if is_streamed(source) else SURVEYED, int(conf.val_size) + 1)
    surveyed = min(enough, conf.max_samples or enough) if smoke else None
    return RecordReader(source, found, conf.on_bad_row == OnBadRow.skip, conf.system, limit, surveyed)


def _refuse_headless(source: Source) -> None:
    """Say why a source has no first row."""
    for place, row in source:
        if isinstance(row, RowError):
            raise row.at(place)
    raise DataError(Problem(source.name, "no rows"))

"""From `dataset.*` to records: opens a source, chooses its format, and reads its rows, as often as needed.

A bad row is an error with its place, or is left out and counted (`dataset.on_bad_row`). Prompts have other columns for reward functions;
each has one type, found in the first rows of all datasets of a run.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

from llmmod.config.schema.base import OnBadRow
from llmmod.config.schema.data import DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.rows.records import PromptRecord, Record, Row, RowError, RowLocation, described, half_character, texts_of, with_system
from llmmod.data.sources.choose import Format, choose_format
from llmmod.data.sources.open import open_source
from llmmod.data.sources.source import Source, is_streamed, needs_length
from llmmod.errors import DataError, Problem

log = logging.getLogger(__name__)

HEAD = 1000  # rows that are searched for columns
SMOKE_TRAIN, SMOKE_EVAL = 8, 4  # rows of a rehearsal
SURVEYED = 10_000  # rows on this machine that a rehearsal reads and checks, in a fifth of a second; from the hub it reads HEAD rows
SHOWN = 3  # bad rows that a report names
_TYPES = {str: "a text", bool: "a truth value", int: "a whole number", float: "a number"}


@dataclass
class BadRows:
    """A report on rows that are left out; there may be millions.

    Args:
        count: rows.
        first: the errors of the first `SHOWN` of them, in their order.
    """

    count: int = 0
    first: list[DataError] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def add(self, error: DataError) -> None:
        """Count one."""
        self.count += 1
        self.first += [error] if len(self.first) < SHOWN else []

    def __iadd__(self, other: BadRows) -> BadRows:
        self.count += other.count
        self.first = [*self.first, *other.first][:SHOWN]
        return self


class Survey(NamedTuple):
    """The result of a survey of records."""

    used: int  # records that are used
    read: int  # records that could be read; in a rehearsal more than are used
    bad: BadRows  # the errors of rows that are left out


@dataclass(frozen=True)
class RecordReader:
    """The records of a source; it can be read again and again.

    Args:
        source: of the rows.
        format: reads them.
        skip: whether bad rows are left out.
        system: the system text of conversations without one; None: they stay without.
        limit: maximum number of records; None: all.
        surveyed: records that a survey reads, although only `limit` are used; None: as many as are used.
        values: for prompts, the other columns and their types; None: as in each row.
    """

    source: Source
    format: Format
    skip: bool = False
    system: str | None = None
    limit: int | None = None
    surveyed: int | None = None
    values: Mapping[str, type] | None = None

    def __iter__(self) -> Iterator[tuple[RowLocation, Any]]:
        return self.read(BadRows())

    def read(self, bad: BadRows) -> Iterator[tuple[RowLocation, Any]]:
        """The records; errors of rows that are left out are added to `bad`.

        Raises:
            DataError: a row is bad, and bad rows aren't left out.
        """
        return islice(self._all(bad), self.limit)

    def head(self, count: int, bad: BadRows) -> tuple[list[tuple[RowLocation, Any]], int]:
        """The first records, at most `count`, and how many could be read, surveyed ones included.

        Errors of rows that are left out are added to `bad`.

        Raises:
            DataError: a row is bad, and bad rows aren't left out.
        """
        records = self._all(bad)
        found = list(islice(records, count if self.limit is None else min(count, self.limit)))
        further = sum(1 for _ in islice(records, max(0, (self.surveyed or 0) - len(found))))
        return found, len(found) + further

    def survey(self) -> Survey:
        """The number of records, and the errors of rows that are left out.

        Raises:
            DataError: a row is bad and bad rows aren't left out, or all rows are bad.
        """
        bad = BadRows()
        count = sum(1 for _ in islice(self._all(bad), self.surveyed or self.limit))
        if not count:
            skipped = f"none of its {len(bad)} rows can be used; the first: {bad.first[0]}" if bad else "doesn't have rows"
            raise DataError(Problem(self.source.name, skipped))
        return Survey(count if self.limit is None else min(count, self.limit), count, bad)

    def value_types(self, head: int) -> dict[str, set[type]]:
        """Other column -> the types of its values in the first rows."""
        found: dict[str, set[type]] = {}
        for _, record in islice(replace(self, skip=True, limit=self.surveyed or self.limit), head):
            for name, value in (record.values if isinstance(record, PromptRecord) else {}).items():
                found.setdefault(name, set()).add(type(value))
        return found

    def _all(self, bad: BadRows) -> Iterator[tuple[RowLocation, Record]]:
        for place, row in self.source:
            try:
                if isinstance(row, RowError):
                    raise row
                record: Record = self.format.read(row)
                if self.values is not None and isinstance(record, PromptRecord):
                    record = replace(record, values=_of_types(record.values, self.values))
                _check_texts(record, row)
            except RowError as error:
                if not self.skip:
                    raise error.at(place) from error.__cause__
                bad.add(error.at(place))
                continue
            yield place, record if self.system is None else with_system(record, self.system)


def _of_types(values: Mapping[str, Any], types: Mapping[str, type]) -> dict[str, Any]:
    """The values of the columns with a type; a whole number becomes a float if that is the type."""
    found = {}
    for name, value in values.items():
        if name in types:
            kind = types[name]
            if value is not None and type(value) is not kind and not (kind is float and type(value) is int):
                raise RowError(f"{described(value)} where the first rows have {_TYPES[kind]}", column=name)
            found[name] = value if value is None else kind(value)
    return found


def _check_texts(record: Record, row: Row) -> None:
    """Refuse texts that a tokenizer can't encode."""
    half = next((found for text in texts_of(record) if (found := half_character(text)) is not None), None)
    if half is not None:
        column = next((str(name) for name, value in row.items() if half_character(value) is not None), None)
        raise RowError(f"{half} is half of a character, so it isn't text", column=column)


@dataclass(frozen=True)
class OpenedDataset:
    """A dataset whose records can be read.

    Args:
        conf: its configuration.
        training: the records, including those that `val_size` holds out.
        validating: held-out records from separate rows, or None.
        kind: of the records.
    """

    conf: DatasetConf
    training: RecordReader
    validating: RecordReader | None = None
    kind: str = "conversation"

    def ranks(self) -> bool:
        """Whether a row may have more than two answers, best first: in one column, or from a user's own function."""
        formats = [reader.format for reader in (self.training, self.validating) if reader]
        in_one_column = any("response" in f.columns and not {"label", "chosen"} & set(f.columns) for f in formats)
        return self.kind in ("preference", "judgement") and (in_one_column or any(not f.columns for f in formats))


def open_dataset(conf: DatasetConf, *, hub: HubConf, smoke: bool, kind: str = "conversation") -> OpenedDataset:
    """The records that a configuration names.

    Args:
        conf: `dataset.*`.
        hub: settings of downloads.
        smoke: whether a few rows are enough.
        kind: of the records, see `data.sources.choose`.

    Raises:
        ConfigError: the data, columns or format don't exist.
        DataError: a file can't be read, or is empty.
    """

    def source_of(split: str) -> Source:
        # A rehearsal needs a few rows of a dataset on the hub, not all of its files.
        streaming = conf.streaming or (smoke and not needs_length(split))
        return open_source(conf.path, data_files=conf.data_files, subset=conf.subset, split=split, hub=hub, streaming=streaming)

    limits = [conf.max_samples, SMOKE_TRAIN + (SMOKE_EVAL if conf.val_size else 0) if smoke else None]
    limit = min((limit for limit in limits if limit is not None), default=None)
    training = _reader(conf, source_of(conf.split), kind=kind, limit=limit, smoke=smoke)
    if conf.val_files:
        builder = conf.path if conf.data_files else None
        source = open_source(builder, data_files=conf.val_files, hub=hub, key="dataset.val_files")
    elif conf.val_split:
        source = source_of(conf.val_split)
    else:
        return OpenedDataset(conf, training, None, kind)
    limit = SMOKE_EVAL if smoke else None
    return OpenedDataset(conf, training, _reader(replace(conf, max_samples=None), source, kind=kind, limit=limit, smoke=smoke), kind)


def _reader(conf: DatasetConf, source: Source, *, kind: str, limit: int | None, smoke: bool) -> RecordReader:
    head = [row for _, row in islice(source, HEAD) if not isinstance(row, RowError)]
    if not head:
        error = next((row.at(place) for place, row in source if isinstance(row, RowError)), None)
        raise error or DataError(Problem(source.name, "doesn't have rows"))
    given = {role: column for role, column in vars(conf.columns).items() if column is not None}
    found = choose_format(conf.format, kind=kind, given=given, head=head, file=source.name)
    # A rehearsal has to find a bad row that would end the run, which is hardly one of the few that it trains on; and whether there are more
    # rows than the held-out ones.
    enough = max(HEAD if is_streamed(source) else SURVEYED, int(conf.val_size) + 1)
    surveyed = min(enough, conf.max_samples or enough) if smoke else None
    return RecordReader(source, found, conf.on_bad_row == OnBadRow.skip, conf.system, limit, surveyed)


def with_common_types(parts: Sequence[OpenedDataset]) -> list[OpenedDataset]:
    """The datasets of prompts of a mix, with only the other columns that have one type in all of them.

    Whole numbers and other numbers become float; columns of different types are left out, with a warning.
    """
    found = {part.conf.name: part.training.value_types(HEAD) for part in parts}
    together: dict[str, set[type]] = {}
    for kinds in found.values():
        for column, types in kinds.items():
            together.setdefault(column, set()).update(types)
    common = {column: kind for column, types in together.items() if (kind := _common(types)) is not None}
    left_out = []
    for column in [column for column in together if column not in common]:
        kinds_in = {name: _common(kinds[column]) for name, kinds in found.items() if column in kinds}
        said = (f"{_TYPES[kind] if kind else 'of different kinds'} in {name}" for name, kind in kinds_in.items())
        left_out.append(f"'{column}' is {' and '.join(said)}")
    if left_out:
        log.warning("reward functions don't get columns with values of different types: %s", "; ".join(left_out))
    agreed = []
    for part in parts:
        validating = part.validating and replace(part.validating, values=common)
        agreed.append(replace(part, training=replace(part.training, values=common), validating=validating))
    return agreed


def _common(types: Collection[type]) -> type | None:
    if set(types) == {int, float}:
        return float
    return next(iter(types)) if len(types) == 1 and set(types) <= set(_TYPES) else None

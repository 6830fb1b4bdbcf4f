"""The types of values that rows carry along for reward functions: of each column one, found in the first rows of all datasets.

Rows that are left out, of which there may be millions: how many, and what is wrong with the first few.

Records from a source's rows: bad ones end it or are left out, each with its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]

from llmmod.data.rows.records import PromptRecord, Record, Row, RowError, RowLocation, described, half_character, texts_of, with_system
from llmmod.data.sources.choose import Format
from llmmod.data.sources.source import Source
from llmmod.errors import DataError, Problem

_ARROW = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_NAMES = {str: "a text", bool: "a truth value", int: "a whole number", float: "a number"}


def value_kinds(rows: Iterable[Mapping[str, Any]]) -> dict[str, set[type]]:
    """Column -> the types of its values."""
    found: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, set()).add(type(value))
    return found


def value_types(datasets: Sequence[Mapping[str, Collection[type]]]) -> dict[str, type]:
    """Column -> str, bool, int or float, the same for all datasets that have it.

    What has whole numbers and others is float; what has different kinds is left out.

    Args:
        datasets: of each, column -> the types of its values.
    """
    together: dict[str, set[type]] = {}
    for kinds in datasets:
        for name, found in kinds.items():
            together.setdefault(name, set()).update(found)
    return {name: kind for name, kinds in together.items() if (kind := _common(kinds)) is not None}


def disagreed(datasets: Mapping[str, Mapping[str, Collection[type]]], agreed: Collection[str]) -> list[str]:
    """Columns that are left out because their values have different kinds, within a dataset or in several, as a clause each.

    Args:
        datasets: name -> column -> the types of its values.
        agreed: the columns that aren't left out.
    """
    told: dict[str, list[str]] = {}
    for dataset, kinds in datasets.items():
        for name, found in kinds.items():
            if name not in agreed:
                kind = _common(set(found))
                told.setdefault(name, []).append(f"{_NAMES[kind] if kind else 'of different kinds'} in {dataset}")
    return [f"'{name}' is {' and '.join(said)}" for name, said in told.items()]


def _common(kinds: set[type]) -> type | None:
    if kinds == {int, float}:
        return float
    return next(iter(kinds)) if len(kinds) == 1 and kinds <= set(_ARROW) else None


def arrow_types(types: Mapping[str, type]) -> dict[str, Any]:
    """The same as Arrow's types."""
    return {name: _ARROW[kind] for name, kind in types.items()}


def conform(values: Mapping[str, Any], types: Mapping[str, type]) -> dict[str, Any]:
    """The values of the columns that have a type.

    Raises:
        RowError: a value of another type.
    """
    return {name: _as(value, types[name], name) for name, value in values.items() if name in types}


def _as(value: Any, kind: type, column: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if value is not None and type(value) is not kind:
        raise RowError(f"{described(value)} where the first rows have {_NAMES[kind]}", column=column)
    return value


SHOWN = 3


@dataclass
class BadRows:
    """An account of what is wrong with rows.

    Args:
        count: rows.
        first: of the first `SHOWN` of them, in their order.
    """

    count: int = 0
    first: list[DataError] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def add(self, fault: DataError) -> None:
        """Count one."""
        self.count += 1
        self.first += [fault] if len(self.first) < SHOWN else []

    def __iadd__(self, other: BadRows) -> BadRows:
        self.count += other.count
        self.first = [*self.first, *other.first][:SHOWN]
        return self


class Survey(NamedTuple):
    """What a survey of records found."""

    used: int  # records that are used
    read: int  # records that could be read; more than are used in a rehearsal
    bad: BadRows  # what is wrong with the rows that are left out


@dataclass(frozen=True)
class RecordReader:
    """The records of a source; it can be read again and again.

    Args:
        source: where the rows come from.
        format: what reads them.
        skip: whether bad rows are left out.
        system: the system text of conversations that have none; None: theirs stays unset.
        limit: records, at most; None: all.
        surveyed: records that a survey reads, though no more than `limit` are used; None: as many as are used.
        values: of prompts, the columns that come along and their types; None: as each row has them.
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
        """The records; what is wrong with the rows that are left out is added to `bad` on the way.

        Raises:
            DataError: a bad row where none may be left out.
        """
        return islice(self._all(bad), self.limit)

    def head(self, count: int, bad: BadRows) -> tuple[list[tuple[RowLocation, Any]], int]:
        """The first records, at most `count`, and how many could be read: those that a survey reads are looked at too.

        What is wrong with rows that are left out is added to `bad`.

        Raises:
            DataError: a bad row where none may be left out.
        """
        records = self._all(bad)
        found = list(islice(records, count if self.limit is None else min(count, self.limit)))
        further = sum(1 for _ in islice(records, max(0, (self.surveyed or 0) - len(found))))
        return found, len(found) + further

    def survey(self) -> Survey:
        """How many records there are, and what is wrong with the rows that are left out.

        Raises:
            DataError: a bad row where none may be left out, or no good one.
        """
        bad = BadRows()
        count = sum(1 for _ in islice(self._all(bad), self.surveyed or self.limit))
        if not count:
            skipped = f"none of its {len(bad)} rows can be used; the first: {bad.first[0]}" if bad else "no rows"
            raise DataError(Problem(self.source.name, skipped))
        return Survey(count if self.limit is None else min(count, self.limit), count, bad)

    def value_kinds(self, head: int) -> dict[str, set[type]]:
        """The columns that come along, and the types of their values, in the first rows."""
        records = (record for _, record in islice(replace(self, skip=True, limit=self.surveyed or self.limit), head))
        return value_kinds(record.values for record in records if isinstance(record, PromptRecord))

    def _all(self, bad: BadRows) -> Iterator[tuple[RowLocation, Record]]:
        for place, row in self.source:
            try:
                if isinstance(row, RowError):
                    raise row
                record: Record = self._conforming(self.format.read(row))
                _check_texts(record, row)
            except RowError as error:
                if not self.skip:
                    raise error.at(place) from error.__cause__
                bad.add(error.at(place))
                continue
            yield place, record if self.system is None else with_system(record, self.system)

    def _conforming(self, record: Record) -> Record:
        if self.values is None or not isinstance(record, PromptRecord):
            return record
        return replace(record, values=conform(record.values, self.values))


def _check_texts(record: Record, row: Row) -> None:
    """Refuse what no tokenizer takes."""
    half = next((found for text in texts_of(record) if (found := half_character(text)) is not None), None)
    if half is not None:
        column = next((str(name) for name, value in row.items() if half_character(value) is not None), None)
        raise RowError(f"{half} is half of a character, and no text", column=column)

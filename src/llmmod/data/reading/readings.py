"""Records from a source's rows: bad ones end it or are left out, each with its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from llmmod.data.reading.faults import Faults
from llmmod.data.reading.own_format import Format
from llmmod.data.reading.values import conform, value_kinds
from llmmod.data.records import Prompted, Record, texts_of, with_system
from llmmod.data.row import Place, Row, RowError, half_character
from llmmod.data.sources.source import Source
from llmmod.errors import DataError, Problem


class Survey(NamedTuple):
    """What a survey of records found."""

    used: int  # records that are used
    read: int  # records that could be read; more than are used in a rehearsal
    bad: Faults  # what is wrong with the rows that are left out


@dataclass(frozen=True)
class Readings:
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

    def __iter__(self) -> Iterator[tuple[Place, Any]]:
        return self.read(Faults())

    def read(self, bad: Faults) -> Iterator[tuple[Place, Any]]:
        """The records; what is wrong with the rows that are left out is added to `bad` on the way.

        Raises:
            DataError: a bad row where none may be left out.
        """
        return islice(self._all(bad), self.limit)

    def head(self, count: int, bad: Faults) -> tuple[list[tuple[Place, Any]], int]:
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
        bad = Faults()
        count = sum(1 for _ in islice(self._all(bad), self.surveyed or self.limit))
        if not count:
            skipped = f"none of its {len(bad)} rows can be used; the first: {bad.first[0]}" if bad else "no rows"
            raise DataError(Problem(self.source.name, skipped))
        return Survey(count if self.limit is None else min(count, self.limit), count, bad)

    def value_kinds(self, head: int) -> dict[str, set[type]]:
        """The columns that come along, and the types of their values, in the first rows."""
        records = (record for _, record in islice(replace(self, skip=True, limit=self.surveyed or self.limit), head))
        return value_kinds(record.values for record in records if isinstance(record, Prompted))

    def _all(self, bad: Faults) -> Iterator[tuple[Place, Record]]:
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
        if self.values is None or not isinstance(record, Prompted):
            return record
        return replace(record, values=conform(record.values, self.values))


def _check_texts(record: Record, row: Row) -> None:
    """Refuse what no tokenizer takes."""
    half = next((found for text in texts_of(record) if (found := half_character(text)) is not None), None)
    if half is not None:
        column = next((str(name) for name, value in row.items() if half_character(value) is not None), None)
        raise RowError(f"{half} is half of a character, and no text", column=column)

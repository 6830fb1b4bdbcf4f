"""Sources of rows: files, tables or streams. A source can be read repeatedly, and keeps at most a batch of rows in memory."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset, IterableDataset, ReadInstruction

from llmmod.cache.content import NoIdentityError, file_digest
from llmmod.data.rows.records import Row, RowError, RowLocation
from llmmod.data.sources.read_files import BY_SUFFIX, ROWS_A_BATCH, Reader, rows_of
from llmmod.errors import ConfigError, DataError, Problem, first_line
from llmmod.files.paths import shown

LocatedRow = tuple[RowLocation, Row | RowError]


class Source(Protocol):
    """Rows, each with its place."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    def __iter__(self) -> Iterator[LocatedRow]:
        """The rows from the first on; a row that can't be read as a `RowError`."""

    def identity(self) -> Any:
        """A JSON value that is the same for sources with the same rows in the same order; raises `NoIdentityError`."""


@dataclass(frozen=True)
class Files:
    """The rows of several files in order.

    Args:
        paths: the files.
        reader: for all of them; None: by each file's suffix.
    """

    paths: Sequence[Path]
    reader: Reader | None = None

    @property
    def name(self) -> str:
        """The file, or the first file and the number of others."""
        others = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{shown(self.paths[0])}{others}"

    def __iter__(self) -> Iterator[LocatedRow]:
        for path in self.paths:
            file, read = shown(path), self.reader or BY_SUFFIX[path.suffix.lower()]
            for number, row in read(path):
                yield RowLocation(file, number), row

    def identity(self) -> Any:
        """The content of each file, and its reader."""
        return [[file_digest(path), (self.reader or BY_SUFFIX[path.suffix.lower()]).__name__] for path in self.paths]


@dataclass(frozen=True)
class Table:
    """The rows of a `datasets.Dataset`.

    Args:
        name: in messages, e.g. a hub id.
        dataset: the table.
    """

    name: str
    dataset: Dataset

    def __iter__(self) -> Iterator[LocatedRow]:
        number = 0
        for start in range(0, len(self.dataset), ROWS_A_BATCH):
            for row in self._rows(range(start, min(start + ROWS_A_BATCH, len(self.dataset)))):
                number += 1
                yield RowLocation(self.name, number), row

    def _rows(self, numbers: range) -> Iterator[Row | RowError]:
        try:
            columns = self.dataset[numbers]
        except UnicodeDecodeError:
            yield from rows_of(self.dataset.with_format("arrow")[numbers])
        else:
            yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))

    def identity(self) -> Any:
        """The content of the rows: two tables of the same files may have different rows."""
        found = hashlib.blake2b(digest_size=16)
        for table in self.dataset.with_format("arrow").iter(batch_size=ROWS_A_BATCH):
            for batch in table.combine_chunks().to_batches():
                found.update(batch.schema.to_string().encode() + batch.serialize())
        return found.hexdigest()


@dataclass(frozen=True)
class StreamSource:
    """The rows of a `datasets.IterableDataset`, downloaded each time they are read; their number is unknown.

    Args:
        name: in messages, e.g. a hub id.
        dataset: the rows.
    """

    name: str
    dataset: IterableDataset

    def __iter__(self) -> Iterator[LocatedRow]:
        number = 0
        try:
            for number, row in enumerate(self.dataset, start=1):
                yield RowLocation(self.name, number), row
        except Exception as error:  # file readers, file systems and the network have different errors for it
            do = "For a file on this machine, the error names the row: dataset.path=my_folder"
            raise DataError(Problem(f"{self.name}, after row {number}", f"can't be read: {first_line(error)}", do=do)) from error

    def identity(self) -> Any:
        """Not available: the next download may differ."""
        raise NoIdentityError(f"{self.name} is downloaded, so it may change")


@dataclass(frozen=True)
class Ranges:
    """Ranges of rows of sources, in order; rows keep their original places.

    Args:
        name: in messages.
        parts: source, first row (from 0) and the row after the last, None for its end.
    """

    name: str
    parts: Sequence[tuple[Source, int, int | None]]

    def __iter__(self) -> Iterator[LocatedRow]:
        for source, start, stop in self.parts:
            yield from islice(source, start, stop)

    def identity(self) -> Any:
        """The identities of the parts, with their ranges."""
        return [[part.identity(), start, stop] for part, start, stop in self.parts]


def take_split(splits: Mapping[str, Source], spec: str) -> Source:
    """The rows that `dataset.split` selects, by the grammar of `datasets`: `train`, `train[:10%]`, `train[-100:]+test`.

    Args:
        splits: name -> source. A slice needs their number of rows, so they are read once; a slice of a stream must count from its
        beginning.

    Raises:
        ConfigError: the text is not a split, the split doesn't exist, or a slice needs an unknown length.
    """
    asked = read_split(spec)
    sliced = "[" in spec
    named = {name: source for name, source in splits.items() if name in spec}
    if any(is_streamed(source) for source in named.values()) and needs_length(spec):
        found = f"'{spec}' needs the length of a streamed dataset, which is unknown"
        raise ConfigError(Problem("dataset.split", found, "Allowed: rows counted from the beginning, as train[100:200]"))
    lengths = {name: _count(source) if sliced else 0 for name, source in named.items()}
    try:
        parts = asked.to_absolute(lengths)
    except ValueError as error:
        raise ConfigError(no_such_split(spec, splits)) from error
    if spec in splits:
        return splits[spec]
    names = dict.fromkeys(part.splitname for part in parts)
    called = f"{'+'.join(splits[name].name for name in names)} [{spec}]" if sliced else "+".join(splits[name].name for name in names)
    return Ranges(called, [(splits[part.splitname], part.from_, part.to if sliced else None) for part in parts])


def read_split(spec: str) -> ReadInstruction:
    """The instruction of a text such as `train[:10%]`.

    Raises:
        ConfigError: the text is not a split.
    """
    try:
        return ReadInstruction.from_spec(spec)
    except (ValueError, AssertionError) as error:
        allowed = "Allowed: a split, a slice of one as train[:10%] or train[10:20], several joined by +"
        raise ConfigError(Problem("dataset.split", f"'{spec}' is not a split", allowed)) from error


def needs_length(spec: str) -> bool:
    """Whether a split depends on the number of rows, such as `train[:10%]` and `train[-100:]`."""
    return "[" in spec and re.search("[%-]", spec) is not None


def no_such_split(spec: str, splits: Collection[str]) -> Problem:
    """The problem of a split that doesn't exist."""
    return Problem("dataset.split", f"'{spec}' does not exist", f"Known: {', '.join(splits)}")


def is_streamed(source: Source) -> bool:
    """Whether reading the rows downloads them."""
    return isinstance(source, StreamSource) or (isinstance(source, Ranges) and any(is_streamed(part) for part, _, _ in source.parts))


def _count(source: Source) -> int:
    if is_streamed(source):
        return sys.maxsize
    return len(source.dataset) if isinstance(source, Table) else sum(1 for _ in source)

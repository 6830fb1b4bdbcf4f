"""Rows of csv, parquet, arrow and txt files, read as they come."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from llmmod.data.rows.records import Row, RowError
from llmmod.data.sources.read_json import not_utf8
from llmmod.errors import DataError, Problem, first_line
from llmmod.files.paths import shown

ROWS_A_BATCH = 1024
CELL = 1 << 30  # characters; csv's own limit is 131,072, which long conversations exceed


def read_csv(path: Path, *, delimiter: str = ",") -> Iterator[tuple[int, Row | RowError]]:
    """Number and row of each record after the header, the first of which is row 1. All values are texts; a short record lacks columns.

    Raises:
        DataError: no header, one with a name twice, quotes that don't close, or no UTF-8.
    """
    csv.field_size_limit(CELL)
    number = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            records = (cells for cells in csv.reader(file, delimiter=delimiter, strict=True) if cells)
            header = _header(next(records, None), path)
            for number, cells in enumerate(records, start=1):
                if len(cells) > len(header):
                    yield number, RowError(f"{len(cells)} cells, where the header names {len(header)} columns")
                else:
                    yield number, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise DataError(Problem(f"{shown(path)}, row {number + 1}", f"no CSV: {error}")) from error
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error


def read_tsv(path: Path) -> Iterator[tuple[int, Row | RowError]]:
    """As `read_csv`, with tabs between the cells."""
    return read_csv(path, delimiter="\t")


def read_parquet(path: Path) -> Iterator[tuple[int, Row | RowError]]:
    """Number and row of each record.

    Raises:
        DataError: the file is no parquet.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield from _numbered(file.iter_batches(batch_size=ROWS_A_BATCH))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(Problem(shown(path), f"no parquet file: {first_line(error)}")) from error


def read_arrow(path: Path) -> Iterator[tuple[int, Row | RowError]]:
    """Number and row of each record of an IPC file or stream (which `datasets` writes), mapped and not loaded.

    Raises:
        DataError: the file is no arrow.
    """
    try:
        with pa.memory_map(str(path)) as mapped:
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            with pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped) as reader:
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else iter(reader)
                yield from _numbered(part for batch in batches for part in _parts(batch))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(Problem(shown(path), f"no arrow file: {first_line(error)}")) from error


def read_text(path: Path) -> Iterator[tuple[int, Row | RowError]]:
    """Number and text of each line that isn't blank, in a column `text`.

    Raises:
        DataError: the file is empty or no UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, {"text": line.rstrip("\n")}
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error


def _header(cells: list[str] | None, path: Path) -> list[str]:
    if cells is None:
        raise DataError(Problem(shown(path), "the file is empty"))
    twice = sorted({name for name in cells if cells.count(name) > 1})
    if twice:
        raise DataError(Problem(f"{shown(path)}, header", f"the column '{twice[0]}' stands there {cells.count(twice[0])} times"))
    return cells


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    return (batch.slice(start, ROWS_A_BATCH) for start in range(0, batch.num_rows, ROWS_A_BATCH))


def _numbered(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, Row | RowError]]:
    return enumerate((row for batch in batches for row in rows_of(batch)), start=1)


def rows_of(batch: pa.RecordBatch | pa.Table) -> Iterator[Row | RowError]:
    """The rows of a batch; one with a text that is no UTF-8, which Arrow doesn't look at when it reads or writes it, as a `RowError`."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        yield from (_row(batch.slice(number, 1)) for number in range(batch.num_rows))


def _row(one: pa.RecordBatch | pa.Table) -> Row | RowError:
    row = {}
    for name, column in zip(one.schema.names, one.columns, strict=True):
        try:
            (row[name],) = column.to_pylist()
        except UnicodeDecodeError as error:
            return RowError(f"no UTF-8 text: byte 0x{error.object[error.start]:02x} can't be read", column=name)
    return row

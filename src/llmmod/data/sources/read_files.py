"""Readers for each kind of file, one row at a time: json, jsonl, csv, tsv, parquet, arrow and txt.

A reader yields each row with its number from 1 on. A row that can't be read is yielded as a `RowError` if the next one can still be read;
an error that ends the file is a `DataError`.

The JSON reader is ours, so that rows have their numbers in every layout of the file, and errors their lines. It uses `json`'s own scanner,
in C: an array is decoded value by value from a window over the file (measured: as fast as `json.load`).
"""

from __future__ import annotations

import csv
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from llmmod.data.rows.records import Row, RowError, described
from llmmod.errors import DataError, Problem, first_line
from llmmod.files.paths import shown

WINDOW = 1 << 20  # characters read at a time
ROWS_A_BATCH = 1024
CELL = 1 << 30  # characters; csv's own limit is 131,072, which long conversations exceed
_LINES = frozenset({".jsonl", ".ndjson"})
_BLANK = " \t\r\n"

NumberedRow = tuple[int, Row | RowError]


def read_json(path: Path) -> Iterator[NumberedRow]:
    """The objects of a file of lines, of an array, or of consecutive values; a row that is a line has the line's number.

    Yields:
        Rows; a value that isn't an object, or a line that isn't JSON, as a `RowError`.

    Raises:
        DataError: the file is empty, not JSON, or not UTF-8.
    """
    first = _first_line(path)
    if not first:
        raise DataError(Problem(shown(path), "the file is empty"))
    try:
        is_object = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not first.startswith("[") and (path.suffix in _LINES or is_object):
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.isspace():
                    yield number, _read_line(line.removeprefix(BOM_UTF8) if number == 1 else line)
        return
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _read_values(file, path)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _first_line(path: Path) -> str:
    """The first line that isn't blank; only its beginning if it is long and not an object: an array may be the whole file."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for part in iter(lambda: file.readline(WINDOW), ""):
            if not part.isspace():
                text = part.lstrip()
                return text + file.readline() if text.startswith("{") and not text.endswith("\n") else text
    return ""


def _read_line(line: bytes) -> Row | RowError:
    try:
        return _object(json.loads(line.decode()))
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8 text: byte 0x{error.object[error.start]:02x} can't be read")
    except json.JSONDecodeError as error:
        return RowError(f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1} of the line")
    except (ValueError, RecursionError) as error:  # a number with too many digits, or a thousand brackets
        return RowError(f"not JSON that can be read: {error}")


def _object(value: Any) -> Row | RowError:
    return value if isinstance(value, dict) else RowError(f"{described(value)} where an object with columns is expected")


def _read_values(file: TextIO, path: Path) -> Iterator[NumberedRow]:
    window = _Window(file, path)
    is_array = window.take("[")
    number = 0
    while window.more():
        if is_array and window.take("]"):
            break
        if is_array and number and not window.take(","):
            raise window.error("expecting ',' or ']' between rows", number)
        yield number + 1, _object(window.value(number + 1))
        number += 1
    else:
        if is_array:
            raise window.error("the array does not end: expecting ',' or ']'", number)
    if window.more():
        raise window.error("text follows the array", number)


class _Window:
    """The part of a file's text that is being decoded."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._decoder = json.JSONDecoder()
        self._text, self._at = "", 0
        self._lines = 0  # line breaks before the window

    def more(self) -> bool:
        """Whether text follows after white space."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._text):
                return True
            if not self._read(WINDOW):
                return False

    def take(self, mark: str) -> bool:
        """Skip `mark` if it is next; returns whether it was."""
        found = self.more() and self._text[self._at] == mark
        self._at += found
        return found

    def value(self, number: int) -> Any:
        """The next value, which is row `number`."""
        self.more()
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
                return value
            except json.JSONDecodeError as error:
                # The window may end within the value: try again with a window twice as large, so that the work stays linear.
                broken_before_end = error.pos < len(self._text) - 16 and not error.msg.startswith("Unterminated string")
                if broken_before_end or not self._read(max(WINDOW, len(self._text) - self._at)):
                    self._at = min(error.pos, len(self._text))
                    raise self.error(error.msg, number) from error
            except (ValueError, RecursionError) as error:
                raise self.error(str(error), number) from error

    def error(self, found: str, number: int) -> DataError:
        """The error at the window's place, which is in or after row `number`."""
        line = self._lines + self._text.count("\n", 0, self._at) + 1
        column = self._at - self._text.rfind("\n", 0, self._at)
        where = f"{shown(self._path)}, row {number}" if number else shown(self._path)
        return DataError(Problem(where, f"not JSON: {found} (line {line}, character {column})"))

    def _read(self, count: int) -> bool:
        """Drop the decoded text and read `count` more characters; False at the end of the file."""
        more = self._file.read(count)
        if more:
            self._lines += self._text.count("\n", 0, self._at)
            self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)


def read_csv(path: Path, *, delimiter: str = ",") -> Iterator[NumberedRow]:
    """Each record after the header. All values are texts; a short record lacks columns.

    Raises:
        DataError: the header is missing or has a name twice, quotes don't close, or the file is not UTF-8.
    """
    csv.field_size_limit(CELL)
    number = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            records = (cells for cells in csv.reader(file, delimiter=delimiter, strict=True) if cells)
            header = next(records, None)
            if header is None:
                raise DataError(Problem(shown(path), "the file is empty"))
            if twice := sorted({name for name in header if header.count(name) > 1}):
                found = f"the column '{twice[0]}' occurs {header.count(twice[0])} times"
                raise DataError(Problem(f"{shown(path)}, header", found))
            for number, cells in enumerate(records, start=1):
                if len(cells) > len(header):
                    yield number, RowError(f"{len(cells)} cells, but the header has {len(header)} columns")
                else:
                    yield number, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise DataError(Problem(f"{shown(path)}, row {number + 1}", f"not CSV: {error}")) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def read_tsv(path: Path) -> Iterator[NumberedRow]:
    """As `read_csv`, with tabs between the cells."""
    return read_csv(path, delimiter="\t")


def read_text(path: Path) -> Iterator[NumberedRow]:
    """Each line that isn't blank, in a column `text`; its number is the line's.

    Raises:
        DataError: the file is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, {"text": line.rstrip("\n")}
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def read_parquet(path: Path) -> Iterator[NumberedRow]:
    """Each record.

    Raises:
        DataError: the file is not parquet.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield from enumerate((row for batch in file.iter_batches(batch_size=ROWS_A_BATCH) for row in rows_of(batch)), start=1)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(Problem(shown(path), f"not a parquet file: {first_line(error)}")) from error


def read_arrow(path: Path) -> Iterator[NumberedRow]:
    """Each record of an IPC file or stream (which `datasets` writes), memory-mapped.

    Raises:
        DataError: the file is not arrow.
    """
    try:
        with pa.memory_map(str(path)) as mapped:
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            with pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped) as reader:
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else iter(reader)
                parts = (batch.slice(at, ROWS_A_BATCH) for batch in batches for at in range(0, batch.num_rows, ROWS_A_BATCH))
                yield from enumerate((row for part in parts for row in rows_of(part)), start=1)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(Problem(shown(path), f"not an arrow file: {first_line(error)}")) from error


def rows_of(batch: pa.RecordBatch | pa.Table) -> Iterator[Row | RowError]:
    """The rows of a batch; a row with a text that isn't UTF-8 as a `RowError`, since Arrow doesn't check texts."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for number in range(batch.num_rows):
        row: dict[str, Any] = {}
        bad = None
        for name, column in zip(batch.schema.names, batch.slice(number, 1).columns, strict=True):
            try:
                (row[name],) = column.to_pylist()
            except UnicodeDecodeError as error:
                bad = bad or RowError(f"not UTF-8 text: byte 0x{error.object[error.start]:02x} can't be read", column=name)
        yield bad or row


def _not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    """The error for a file that isn't UTF-8 text, with the first line that can't be read."""
    with path.open("rb") as file:
        number = next((number for number, line in enumerate(file, start=1) if line.decode(errors="replace").encode() != line), 1)
    found = f"not UTF-8 text: byte 0x{error.object[error.start]:02x} can't be read"
    do = "Save it as UTF-8, or give its real kind: dataset.path=parquet dataset.data_files=…"
    return DataError(Problem(f"{shown(path)}, line {number}", found, do=do))


Reader = Callable[[Path], Iterator[NumberedRow]]

BY_SUFFIX: Mapping[str, Reader] = {
    ".json": read_json, ".jsonl": read_json, ".ndjson": read_json, ".csv": read_csv, ".tsv": read_tsv,
    ".parquet": read_parquet, ".arrow": read_arrow, ".txt": read_text,
}  # fmt: skip
# The builders' names in `datasets`, for files without a known suffix.
BY_BUILDER: Mapping[str, Reader] = {"json": read_json, "csv": read_csv, "parquet": read_parquet, "arrow": read_arrow, "text": read_text}

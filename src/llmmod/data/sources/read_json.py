"""Rows of JSON files: lines (jsonl), an array, or values one after the other, read as they come and never all at once.

Ours rather than a library's so that a row keeps its number, however the file is laid out, and an error its line. `json`'s own scanner,
in C, does the reading: an array is decoded value by value from a window over the file (measured: as fast as `json.load`).
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from llmmod.data.rows.records import Row, RowError, described
from llmmod.errors import DataError, Problem
from llmmod.files.paths import shown

WINDOW = 1 << 20  # characters read at a time
_LINES = frozenset({".jsonl", ".ndjson"})
_BLANK = " \t\r\n"


def read_json(path: Path) -> Iterator[tuple[int, Row | RowError]]:
    """Number and row of each object in the file; the number of a row that is a line is that of the line.

    Yields:
        What isn't an object, or a line that is no JSON, as a `RowError`: the next row can still be read.

    Raises:
        DataError: the file is empty, no JSON, or no UTF-8.
    """
    first = _first_line(path)
    if not first:
        raise DataError(Problem(shown(path), "the file is empty"))
    if not first.startswith("[") and (path.suffix in _LINES or _is_object(first)):
        yield from _read_lines(path)
        return
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _read_values(file, path)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error


def not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    """The error for a file that is no UTF-8 text."""
    found = f"no UTF-8 text: byte 0x{error.object[error.start]:02x} can't be read"
    do = "Save it as UTF-8, or give its real kind: dataset.path=parquet dataset.data_files=…"
    return DataError(Problem(f"{shown(path)}, line {_undecodable_line(path)}", found, do=do))


def _undecodable_line(path: Path) -> int:
    """The number of the first line that is no UTF-8."""
    with path.open("rb") as file:
        return next((number for number, line in enumerate(file, start=1) if not _is_utf8(line)), 1)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _first_line(path: Path) -> str:
    """The first line that isn't blank; only its beginning where it is long and no object: an array may be the whole file."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for part in iter(lambda: file.readline(WINDOW), ""):
            if not part.isspace():
                text = part.lstrip()
                return text + file.readline() if text.startswith("{") and not text.endswith("\n") else text
    return ""


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _read_lines(path: Path) -> Iterator[tuple[int, Row | RowError]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield number, _read_line(line.removeprefix(BOM_UTF8) if number == 1 else line)


def _read_line(line: bytes) -> Row | RowError:
    try:
        return _row(json.loads(line.decode()))
    except UnicodeDecodeError as error:
        return RowError(f"no UTF-8 text: byte 0x{error.object[error.start]:02x} can't be read")
    except json.JSONDecodeError as error:
        return RowError(f"no JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1} of the line")
    except (ValueError, RecursionError) as error:  # a number of too many digits, a thousand brackets
        return RowError(f"no JSON that can be read: {error}")


def _row(value: Any) -> Row | RowError:
    return value if isinstance(value, dict) else RowError(f"{described(value)} where an object with columns is expected")


def _read_values(file: TextIO, path: Path) -> Iterator[tuple[int, Row | RowError]]:
    window = _Window(file, path)
    is_array = window.take("[")
    number = 0
    while window.more():
        if is_array and window.take("]"):
            break
        if is_array and number and not window.take(","):
            raise window.error("expecting ',' or ']' between rows", number)
        yield number + 1, _row(window.value(number + 1))
        number += 1
    else:
        if is_array:
            raise window.error("the array does not end: expecting ',' or ']'", number)
    if window.more():
        raise window.error("something follows the array", number)


class _Window:
    """The part of a file's text that is being decoded."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._decoder = json.JSONDecoder()
        self._text, self._at = "", 0
        self._lines = 0  # line breaks before the window

    def more(self) -> bool:
        """Whether anything follows, past white space."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._text):
                return True
            if not self._read(WINDOW):
                return False

    def take(self, mark: str) -> bool:
        """Step over `mark` if it is next."""
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
                # Perhaps the window ends within the value: look again with twice as much, so that the work stays linear.
                broken_before_end = error.pos < len(self._text) - 16 and not error.msg.startswith("Unterminated string")
                if broken_before_end or not self._read(max(WINDOW, len(self._text) - self._at)):
                    self._at = min(error.pos, len(self._text))
                    raise self.error(error.msg, number) from error
            except (ValueError, RecursionError) as error:
                raise self.error(str(error), number) from error

    def error(self, found: str, number: int) -> DataError:
        """What is wrong at the window's place, which is in or after row `number`."""
        line = self._lines + self._text.count("\n", 0, self._at) + 1
        column = self._at - self._text.rfind("\n", 0, self._at)
        where = f"{shown(self._path)}, row {number}" if number else shown(self._path)
        return DataError(Problem(where, f"no JSON: {found} (line {line}, character {column})"))

    def _read(self, count: int) -> bool:
        """Let go of what is decoded and take in `count` more characters; False at the end of the file."""
        more = self._file.read(count)
        if more:
            self._lines += self._text.count("\n", 0, self._at)
            self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)

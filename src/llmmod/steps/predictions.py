"""Lines that are written as they come and end up in order."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType


class OrderedLines:
    """A file of numbered lines, each on the disk as soon as it is written; sorted by number when the block ends without an error.

    Only the lines' places are held in memory, not the lines. After an error the file has what was written, in the order of writing.

    Args:
        path: replaced where it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[int, tuple[int, int]] = {}  # number -> offset and length, in bytes

    def __enter__(self) -> OrderedLines:
        self._file = self._path.open("wb")
        return self

    def write(self, number: int, line: str) -> None:
        """Write a line, without its line break."""
        content = line.encode() + b"\n"
        self._places[number] = (self._file.tell(), len(content))
        self._file.write(content)
        self._file.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            self._sort()

    def _sort(self) -> None:
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with self._path.open("rb") as written, partial.open("wb") as ordered:
                for number in sorted(self._places):
                    offset, length = self._places[number]
                    written.seek(offset)
                    ordered.write(written.read(length))
            partial.replace(self._path)
        finally:
            partial.unlink(missing_ok=True)

"""Weights read from files without keeping the files in memory beside them.

Weight files are mapped, and a mapped page counts as the process's own from when it is read. Where weights are converted on the way, to
another type or to 4 bit, both would be there at the end: 1.5 times the model from float16 to float32, 4 times in 4 bit. What has been read
is therefore given back to the system as loading goes on; a page that is needed again is read again.

Linux alone; elsewhere nothing is done. May go when transformers does it (5.23 doesn't).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from transformers import core_model_loading

_AT_ONCE = 4 * 2**20  # bytes of weights that may be read before pages are given back


class _Pages:
    """Pages of files that were mapped whole since this was made: weight files, and no libraries, of which parts are mapped."""

    def __init__(self) -> None:
        self._before = _mapped_files()
        self._read, self._lock = 0, threading.Lock()

    def count(self, size: int) -> None:
        """Give pages back once enough bytes were read."""
        with self._lock:
            self._read += size
            if self._read < _AT_ONCE:
                return
            self._read = 0
        self.give_back()

    def give_back(self) -> None:
        """Drop every page, since none of them was written to and the file has what they held; and what the allocator holds back."""
        for start, length in _mapped_files() - self._before:
            _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
        if hasattr(_LIBC, "malloc_trim"):  # glibc: packed weights between converted ones keep it from doing so by itself
            _LIBC.malloc_trim(0)


_OPEN: list[_Pages] = []


@contextmanager
def giving_back() -> Iterator[None]:
    """While it lasts, transformers' loading gives back pages of weight files that it has read; files mapped before are left alone."""
    if not sys.platform.startswith("linux"):
        yield
        return
    copy = core_model_loading._materialize_copy

    def materialize(tensor: Any, device: Any = None, dtype: Any = None) -> torch.Tensor:
        result: torch.Tensor = copy(tensor, device, dtype)
        has_read(result.numel() * result.element_size())
        return result

    _OPEN.append(_Pages())
    try:
        with mock.patch.object(core_model_loading, "_materialize_copy", materialize):
            yield
    finally:
        _OPEN.pop().give_back()


def has_read(size: int) -> None:
    """Tell the innermost `giving_back` of bytes that were read from a mapped file in another way; outside of one nothing is done."""
    if _OPEN:
        _OPEN[-1].count(size)


def _mapped_files() -> set[tuple[int, int]]:
    """Address and length of each mapping of a whole file that isn't executable."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        return {place for line in lines if (place := _whole_file(line))}


def _whole_file(line: str) -> tuple[int, int] | None:
    """What a line of /proc/self/maps says of a file that is mapped from its beginning to its end; None for anything else."""
    addresses, rights, offset, _, inode, *path = line.split(maxsplit=5)
    if inode == "0" or int(offset, 16) or "x" in rights or not path:
        return None
    start, end = (int(address, 16) for address in addresses.split("-"))
    try:
        size = os.stat(path[0].rstrip("\n")).st_size
    except OSError:
        return None
    return (start, end - start) if end - start == -(-size // mmap.PAGESIZE) * mmap.PAGESIZE else None


_LIBC: Any = ctypes.CDLL(None) if sys.platform.startswith("linux") else None

"""A model of glibc's malloc: the memory that a process has while its tensors are allocated and freed.

malloc can't reuse a hole for a block of the same size: aligned memory needs 96 bytes more than it keeps, and small objects fill some of the
gaps next to it. An object of autograd's graph stays in its gap until the backward pass frees it; others stay until some more blocks have
been allocated. Two numbers are fitted, to trainings of SmolLM2-135M (`benchmarks/plan.py`): the share of the gaps that are filled, and how
long the objects outside of the graph stay.
"""

from __future__ import annotations

import bisect
from collections import deque

_FILLED = 0.35  # the share of the gaps that small objects fill
_FREED = 2 * _FILLED  # gaps that a block of the backward pass empties: as many as a block of the forward pass has filled
_GAP_LIFE = 200  # blocks, for objects outside of the graph
_MOST_THRESHOLD = 32 << 20  # bytes: larger blocks are always mapped separately


class Heap:
    """The memory of a process under glibc's malloc (2.36), counting blocks of a kilobyte or more.

    A block goes into the best-fitting hole, and neighbouring holes are joined. If it fits into none, it is cut from the top, or mapped
    separately above a threshold, which grows as mapped blocks are freed. The top rarely shrinks, since a small object usually lies above
    it.
    """

    def __init__(self) -> None:
        self._threshold, self._top, self._resident, self._mapped = 128 << 10, 0, 0, 0
        self._holes: list[tuple[int, int]] = []  # (size, start), sorted
        self._by_start: dict[int, int] = {}
        self._by_end: dict[int, int] = {}
        self._used: dict[int, tuple[int, int]] = {}
        self._gaps: deque[tuple[int, int, int]] = deque()  # (the block with which it is free, start, size)
        self._of_graph: list[tuple[int, int]] = []  # gaps that objects of the graph fill: (start, size)
        self._blocks, self._filled, self._freed, self._graph = 0, 0.0, 0.0, 0

    @property
    def bytes(self) -> int:
        """Bytes that the process has touched and not returned."""
        return self._resident + self._mapped

    def take(self, number: int, size: int, *, graph: int = 0) -> None:
        """Allocate a block.

        Args:
            number: identifies it.
            size: bytes.
            graph: 1 for an operation that autograd records, -1 for one of a backward pass, 0 for others.
        """
        self._empty_gaps(graph)
        kept = max(32, (size + 23) & ~15)
        need = kept + 96  # for a start that is a multiple of 64
        place = bisect.bisect_left(self._holes, (need, 0))
        if place < len(self._holes):
            hole, start = self._holes[place]
            self._fill(hole, start)
            if hole - need >= 32:
                self._open(start + need, hole - need)
            else:
                need = hole
        elif need < self._threshold or self._resident - self._top >= need:
            start, self._top = self._top, self._top + need
            self._resident = max(self._resident, self._top)
        else:
            mapped = (need + 4095) & ~4095
            self._used[number] = (-1, mapped)
            self._mapped += mapped
            return
        before = -(start + 16) % 64
        before += 64 if 0 < before < 32 else 0
        self._used[number] = (start + before, kept)
        for at, gap in ((start, before), (start + before + kept, need - before - kept)):
            if gap >= 32:
                self._fill_gap(at, gap, graph)

    def give(self, number: int) -> None:
        """Free a block."""
        start, size = self._used.pop(number)
        if start >= 0:
            self._join(start, size)
            return
        self._mapped -= size
        if self._threshold < size <= _MOST_THRESHOLD:
            self._threshold = size

    def _empty_gaps(self, graph: int) -> None:
        """Join the gaps whose objects are freed by the time of the next block."""
        self._blocks += 1
        while self._gaps and self._gaps[0][0] <= self._blocks:
            self._join(*self._gaps.popleft()[1:])
        if graph < 0:
            self._freed += _FREED
        else:  # once a backward pass has ended, nothing of the graph is left
            self._freed = float(len(self._of_graph)) if self._graph < 0 else 0.0
        while self._of_graph and self._freed >= 1:
            self._join(*self._of_graph.pop())
            self._freed -= 1
        self._graph = graph

    def _fill_gap(self, start: int, size: int, graph: int) -> None:
        """Put a small object into a share of the gaps, outside of a backward pass, and join the others with the holes next to them."""
        self._filled += _FILLED if graph >= 0 else 0.0
        if self._filled < 1 or graph < 0:
            self._join(start, size)
            return
        self._filled -= 1
        if graph > 0:
            self._of_graph.append((start, size))
        else:
            self._gaps.append((self._blocks + _GAP_LIFE, start, size))

    def _join(self, start: int, size: int) -> None:
        if (before := self._by_end.get(start)) is not None:
            self._fill(before, start - before)
            start, size = start - before, size + before
        if (after := self._by_start.get(start + size)) is not None:
            self._fill(after, start + size)
            size += after
        if start + size == self._top:
            self._top = start
        else:
            self._open(start, size)

    def _open(self, start: int, size: int) -> None:
        bisect.insort(self._holes, (size, start))
        self._by_start[start] = self._by_end[start + size] = size

    def _fill(self, size: int, start: int) -> None:
        del self._holes[bisect.bisect_left(self._holes, (size, start))]
        del self._by_start[start], self._by_end[start + size]

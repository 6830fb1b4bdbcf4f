"""The device that a training is planned for: its memory, its share of a model, its speed, and on a CPU the heap of the process.

Sharding follows ZeRO (Rajbhandari et al. 2020, figure 1). `deepspeed_zero2` shards gradients and the optimizer's states. `deepspeed_zero3`
and `fsdp` shard the weights too; the weights of the current layer and of the next one are then gathered, and so are the gradients of one
layer. `ddp` doesn't shard, and copies gradients into buckets (torch's default, `gradient_as_bucket_view=False`).

The heap is a model of glibc's malloc, which can't reuse a hole for a block of the same size: aligned memory needs 96 bytes more than it
keeps, and small objects fill some of the gaps next to it. An object of autograd's graph stays in its gap until the backward pass frees it;
others stay until some more blocks have been allocated. Two numbers are fitted, to trainings of SmolLM2-135M (`benchmarks/plan.py`): the
share of the gaps that are filled, and how long the objects outside of the graph stay.
"""

from __future__ import annotations

import bisect
import json
import os
import re
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from llmmod.cache.content import digest
from llmmod.cache.store import cache_directory
from llmmod.errors import ConfigError, Problem
from llmmod.files.paths import atomic_write
from llmmod.models.matmul import onednn_products
from llmmod.upstream import processor

KEY = "steps.plan.device_memory"
_DIVIDED = {
    "fsdp": ("weights", "reference", "gradients", "optimizer"),
    "deepspeed_zero2": ("gradients", "optimizer"),
    "deepspeed_zero3": ("weights", "reference", "gradients", "optimizer"),
}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_CONTEXT = 600 * 10**6  # bytes of a CUDA context with cuBLAS; assumed, not measured
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # memory limits of a container
_SECONDS = 0.2  # duration of a measurement
# Of the heap.
_FILLED = 0.35  # the share of the gaps that small objects fill
_FREED = 2 * _FILLED  # gaps that a block of the backward pass empties: as many as a block of the forward pass has filled
_GAP_LIFE = 200  # blocks, for objects outside of the graph
_MOST_THRESHOLD = 32 << 20  # bytes: larger blocks are always mapped separately


@dataclass(frozen=True)
class Device:
    """A device.

    Args:
        kind: `cpu`, `cuda`, …
        name: its name in the report.
        bytes: the memory that a training may use.
        baseline: the part of it that the program itself uses, without the model and its training.
        here: whether it is in this machine.
    """

    kind: str
    name: str
    bytes: int
    baseline: int
    here: bool = True

    @property
    def is_gpu(self) -> bool:
        """Whether it isn't the CPU."""
        return self.kind != "cpu"


def device_for(memory: str | int | None, *, use_cpu: bool) -> Device:
    """This machine's device, or a device with the given memory.

    Args:
        memory: `steps.plan.device_memory`; None: this machine's memory.
        use_cpu: `training.use_cpu`.

    Raises:
        ConfigError: not an amount of memory.
    """
    baseline = resident_bytes()
    wanted = None if memory is None else parse_bytes(memory)
    if not use_cpu and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        own = torch.cuda.memory_reserved()
        return Device("cuda", torch.cuda.get_device_name(), wanted or free + own, max(0, _CONTEXT - (total - free)))
    if wanted is not None and not use_cpu:
        return Device("cuda", f"a GPU of {memory}", wanted, _CONTEXT, here=False)
    limits = [int(text) for place in _LIMITS if Path(place).is_file() and (text := Path(place).read_text().strip()).isdigit()]
    there = min([psutil.virtual_memory().available + baseline, *limits])
    return Device("cpu", "this machine's CPU", wanted or there, baseline)


def resident_bytes() -> int:
    """The memory of this process."""
    return int(psutil.Process().memory_info().rss)


def parse_bytes(text: str | int) -> int:
    """`24GB` (10^9), `24GiB` (2^30), `500MB`, or a number, as bytes.

    Raises:
        ConfigError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B|)\s*", str(text).upper())
    if found is None or float(found[1]) <= 0:
        raise ConfigError(Problem(KEY, f"'{text}' is not an amount of memory", "Allowed: 24GB, 24GiB, 500MB, a number of bytes"))
    return int(float(found[1]) * _UNITS[found[2]])


def per_device(parts: Counter[str], way: str, processes: int, *, layer: int, trained: int) -> Counter[str]:
    """A device's share of a peak: part -> bytes.

    Args:
        parts: the parts on a single device.
        way: `distributed.name`.
        processes: the number of processes.
        layer: bytes of the weights of a layer.
        trained: bytes of the gradients of all trained weights.
    """
    held = Counter(parts)
    if way == "none" or processes < 2:
        return held
    for part in set(_DIVIDED.get(way, ())) & set(held):
        held[part] = -(-held[part] // processes)
    if way == "ddp":
        held["gathered"] = trained
    elif "weights" in _DIVIDED[way]:
        held["gathered"] = 2 * layer + (min(layer, parts["gradients"]) if parts["gradients"] else 0)
    return held


def measured_rate(device: Device, *, hub_cache_dir: str | None) -> float:
    """FLOP/s of a matrix product on a device of this machine, measured once and cached; 0 for a device that isn't in this machine."""
    if not device.here:
        return 0.0
    dtype = torch.bfloat16 if device.is_gpu else torch.float32
    key = digest([device.name, torch.__version__, torch.get_num_threads(), processor(), os.cpu_count()])[:16]
    file = cache_directory(hub_cache_dir) / "flops" / f"{key}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        return float(json.loads(file.read_text(encoding="utf-8"))["flops"])
    size = 8192 if device.is_gpu else 512
    with onednn_products():
        rate = _rate(torch.ones(size, size, dtype=dtype, device=device.kind))
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as partial:
            partial.write_text(json.dumps({"flops": rate, "device": device.name}), encoding="utf-8")
    return rate


def _rate(matrix: torch.Tensor) -> float:
    """FLOP/s; on a CPU, of CPU time, so that other programs do not affect it."""
    on_cpu = matrix.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    wait: Any = (lambda: None) if on_cpu else torch.accelerator.synchronize
    torch.mm(matrix, matrix)
    wait()
    start, count = clock(), 0
    while clock() - start < _SECONDS:
        torch.mm(matrix, matrix)
        wait()
        count += 1
    threads = torch.get_num_threads() if on_cpu else 1
    return 2 * len(matrix) ** 3 * count / (clock() - start) * threads


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

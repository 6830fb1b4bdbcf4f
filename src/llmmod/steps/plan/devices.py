"""The device that a training is planned for, each device's share of a model, and the device's speed in FLOP/s.

Sharding follows ZeRO (Rajbhandari et al. 2020, figure 1). `deepspeed_zero2` shards gradients and the optimizer's states. `deepspeed_zero3`
and `fsdp` shard the weights too; the weights of the current layer and of the next one are then gathered, and so are the gradients of one
layer. `ddp` doesn't shard, and copies gradients into buckets (torch's default, `gradient_as_bucket_view=False`).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
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

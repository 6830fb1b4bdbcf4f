"""Products of float32 matrices on AMD processors with AVX-512, where MKL has half the speed of oneDNN.

PyTorch computes them with MKL, which uses AVX-512 only on Intel's processors; oneDNN, which PyTorch uses for 16 bits, checks the
processor's features. On an AMD EPYC with one thread, for 40 to 2,048 rows: 95 to 109 GFLOP/s with MKL, 190 to 240 with oneDNN; for one row,
whose time is that of reading the weights: 16 GB/s and 25.

The kernels are replaced for the whole process during a run, so that forward, backward and every library are faster. The choice depends on
the processor and on shapes, not on a measurement: the same machine computes the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llmmod.upstream import require_upstream

_CPUINFO = Path("/proc/cpuinfo")
_replaced: list[Any] = []  # the library object, while kernels are replaced
_LEAST = 32  # columns and channels: narrower products, such as LoRA's, are as fast with MKL


def helps_here() -> bool:
    """Whether oneDNN is faster on this machine."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_onednn or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return _CPUINFO.is_file() and "AuthenticAMD" in _CPUINFO.read_text(encoding="utf-8", errors="replace")


@contextmanager
def onednn_products() -> Iterator[None]:
    """A context in which oneDNN multiplies float32 matrices on the CPU, if it is faster here."""
    if not helps_here():
        yield
        return
    with replaced_kernels():
        yield


@contextmanager
def replaced_kernels() -> Iterator[None]:
    """A context in which oneDNN multiplies float32 matrices on the CPU; only the order of rounding changes."""
    require_upstream(__name__)
    multiply = torch.ops.mkldnn._linear_pointwise
    own = {name: torch.library.get_kernel(f"aten::{name}", "CPU") for name in ("mm", "addmm")}

    def mm(keys: Any, left: torch.Tensor, right: torch.Tensor) -> Any:
        if _is_worth_it(left, right):
            return multiply(left, right.t(), None, "none", [], "")
        return own["mm"].call_boxed(keys, left, right)

    def addmm(keys: Any, bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
        plain = bias.dim() == 1 and len(bias) == right.shape[1] and bias.dtype is left.dtype and beta == alpha == 1
        if plain and _is_worth_it(left, right):
            return multiply(left, right.t(), bias, "none", [], "")
        return own["addmm"].call_boxed(keys, bias, left, right, beta=beta, alpha=alpha)

    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that a kernel is replaced
        library.impl("mm", mm, "CPU", with_keyset=True, allow_override=True)
        library.impl("addmm", addmm, "CPU", with_keyset=True, allow_override=True)
    _replaced.append(multiply)
    try:
        yield
    finally:
        _replaced.pop()
        library._destroy()


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function for a linear layer's output without gradients, with the same bits as `functional.linear` while the kernels don't change.

    If oneDNN multiplies, it is called directly: this saves four operations and a Python call, 4 of 16 µs per layer.

    Args:
        weight: [outputs, channels].
        bias: [outputs].
    """
    if not _replaced or weight.device.type != "cpu" or weight.dtype is not torch.float32 or min(weight.shape) < _LEAST:
        return partial(torch.nn.functional.linear, weight=weight, bias=bias)
    multiply = _replaced[-1].default

    def product(input: torch.Tensor) -> torch.Tensor:
        return multiply(input, weight, bias, "none", [], "")  # type: ignore[no-any-return]

    return product


def _is_worth_it(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype is not torch.float32 or right.dtype is not torch.float32:
        return False
    return left.shape[1] >= _LEAST and right.shape[1] >= _LEAST

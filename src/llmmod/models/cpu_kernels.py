"""bitsandbytes' kernels for CPUs (0.50), kept from computing something else than the weights that were quantized, and from taking memory.

Two faults, both on CPUs with AVX512 alone and both without a word:

- A matrix is quantized in runs of 64 weights, whatever its width; but unpacked as if each row began a new run. Where the width is no
  multiple of 64, most weights come out wrong, by as much as a run's largest.
- With AVX512-BF16, a layer's weights are repacked at its first evaluation, for good, for a kernel that rounds to bfloat16, has no
  gradient (training that goes on afterwards gets none through its layers), and fails where the width is no multiple of 64.

And on any CPU, packing a matrix into 4 bit takes 16 bytes a weight: for one of a 7B model's, a fifth of the whole packed model.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

_PACK = "bitsandbytes::quantize_4bit"
_AT_ONCE = 2**16  # weights that are packed together: a multiple of every length that a run can have
_UNPACK = ("cdequantize_blockwise_cpu_nf4_", "cdequantize_blockwise_cpu_fp4_")  # others, of 8 bits, take other arguments


def mend_unpacking() -> None:
    """Have 4-bit weights unpacked in the runs that they were packed in, for the rest of the process."""
    from bitsandbytes.backends.cpu import ops

    if not isinstance(ops.lib, _InRuns):
        ops.lib = _InRuns(ops.lib)


@functools.cache
def pack_in_parts() -> None:
    """Have matrices packed into 4 bit a part at a time, to the same bits, for the rest of the process."""
    import bitsandbytes  # noqa: F401  # registers what is replaced

    whole = torch.library.get_kernel(_PACK, "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def pack(weights: torch.Tensor, run: int, kind: str, storage: torch.dtype) -> tuple[torch.Tensor, ...]:
        parts = [whole.call_boxed(keys, part, run, kind, storage) for part in torch.split(weights.reshape(-1), _AT_ONCE)]
        return tuple(torch.cat(same) for same in zip(*parts, strict=True))  # packed weights, and each run's largest

    torch.library.register_kernel(_PACK, "cpu", pack)


def keep_differentiable(model: Any) -> None:
    """Keep 4-bit weights as they are while a model is evaluated on a CPU; it is changed in place."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


class _InRuns:
    """bitsandbytes' compiled library, whose unpacking functions get a matrix with a run a row, or all of it in one row."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)
        if not name.startswith(_UNPACK):
            return function

        def unpack(packed: Any, largest: Any, out: Any, run: ctypes.c_longlong, rows: ctypes.c_longlong, width: ctypes.c_longlong) -> None:
            total = rows.value * width.value
            rows, width = (total // run.value, run.value) if total % run.value == 0 else (1, total)  # type: ignore[assignment]
            function(packed, largest, out, run, ctypes.c_longlong(rows), ctypes.c_longlong(width))  # type: ignore[arg-type]

        return unpack

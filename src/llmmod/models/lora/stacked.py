"""Adapters on quantized weights that a newer adapter is trained on top of: they stay active beside the weights instead of being merged.

A merge would round the sum to 4 or 8 bits again. Most of what an adapter has learnt is smaller than half a step of that grid and would be
lost: of a change of 1 % of the weights' standard deviation, 1.6 % arrives (NF4). So a quantized layer keeps a list of frozen adapters and
adds what they compute to its output, as peft does for an active adapter. To everything else it is the layer it was: a new PeftModel goes on
top, its `disable_adapter` leaves the earlier adapters active, and `save_pretrained` writes the new one alone. Weights that aren't quantized
(embeddings, head, `modules_to_save`) are merged or replaced as always.

peft could also keep several active adapters in one PeftModel. Then every `disable_adapter`, `save_pretrained` and `active_adapter` of trl,
transformers and ours would have to know which of them is meant.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from torch import nn
from torch.nn import functional

from llmmod.errors import ConfigError, Problem
from llmmod.models.lora.config import quiet_peft
from llmmod.models.quantize import STACKED, is_quantized_layer, unpacked_weight


class StackedAdapter(nn.Module):
    """A frozen adapter of one linear layer, without dropout: B A x * scaling, and DoRA's factor of each output channel.

    Args:
        down: [r, in].
        up: [out, r].
        scaling: of their product.
        factor: DoRA's magnitudes over the norms of the weight's rows, [out]; None: plain LoRA.
    """

    down: torch.Tensor
    up: torch.Tensor
    factor: torch.Tensor | None

    def __init__(self, down: torch.Tensor, up: torch.Tensor, *, scaling: float, factor: torch.Tensor | None = None) -> None:
        super().__init__()
        self.scaling = scaling
        # Buffers, which nothing trains, counts or casts; they move with the layer and are in no state dict.
        self.register_buffer("down", down.detach().clone(), persistent=False)
        self.register_buffer("up", up.detach().clone(), persistent=False)
        self.register_buffer("factor", None if factor is None else factor.detach().clone(), persistent=False)

    def forward(self, x: torch.Tensor, result: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The layer's output with this adapter, [..., out].

        Args:
            x: the layer's input, [..., in].
            result: its output so far, bias included.
            bias: [out].
        """
        low = functional.linear(functional.linear(x.to(self.down.dtype), self.down), self.up) * self.scaling
        if self.factor is None:
            return result + low.to(result.dtype)
        without = result if bias is None else result - bias
        total = (self.factor * (without + low)).to(result.dtype)
        return total if bias is None else total + bias

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight that computes the same, [out, in], float32."""
        total = weight.float() + self.scaling * (self.up.float() @ self.down.float())
        return total if self.factor is None else self.factor.float()[:, None] * total


def merge_or_stack(adapted: Any) -> Any:
    """The base model of a PeftModel with its active adapter merged, and kept beside those weights that are quantized.

    Args:
        adapted: used up.

    Returns:
        A PreTrainedModel. What it computes on quantized weights is what the PeftModel did, rounding of the last bits apart.

    Raises:
        ConfigError: a kind of adapter that can't be kept so.
    """
    for name, layer in list(adapted.named_modules()):
        if isinstance(layer, LoraLayer) and is_quantized_layer(base := layer.get_base_layer()):
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A:
                    _stack(base, layer, adapter)
            place, _, own_name = name.rpartition(".")
            setattr(adapted.get_submodule(place), own_name, base)
    with quiet_peft():
        return adapted.merge_and_unload()


def norms_with_stacked(adapted: Any, *, new: bool) -> None:
    """Have DoRA take the norms of weights with the adapters that are stacked on them; a PeftModel, changed in place.

    peft 0.21 takes those of the quantized weight alone, so that an exported model would be another.

    Args:
        adapted: just made.
        new: whether its magnitudes are to begin with these norms, rather than with what a file has.
    """
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer) and hasattr(layer.get_base_layer(), STACKED):
            for magnitude in layer.lora_magnitude_vector.values():
                magnitude.__class__ = _DoraOnStacked
                if new:
                    norms = torch.linalg.norm(unpacked_weight(layer.get_base_layer()), dim=1)
                    magnitude.weight.data = norms.to(magnitude.weight)


class _DoraOnStacked(DoraLinearLayer):
    """DoRA's magnitudes on a layer with stacked adapters."""

    def forward(self, x: torch.Tensor, *, base_layer: nn.Module, **given: Any) -> torch.Tensor:
        weight = nn.Parameter(unpacked_weight(base_layer).to(x.dtype), requires_grad=False)
        return super().forward(x, base_layer=SimpleNamespace(weight=weight, bias=base_layer.bias), **given)  # type: ignore[no-any-return]


def _stack(base: Any, layer: Any, adapter: str) -> None:
    low, high, scaling = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]
    factor = None
    if adapter in layer.lora_magnitude_vector:
        whole = unpacked_weight(base).float() + scaling * (high.float() @ low.float())
        factor = layer.lora_magnitude_vector[adapter].weight / torch.linalg.norm(whole, dim=1)
    elif adapter in layer.lora_variant:
        found = f"an adapter of a kind ({type(layer.lora_variant[adapter]).__name__}) that can't stay beside quantized weights"
        raise ConfigError(Problem("finetune.adapters", found, do="Use model.quantization.bits=null"))
    if (shift := layer.lora_B[adapter].bias) is not None:
        if base.bias is None:
            found = "an adapter with lora_bias on quantized layers without a bias of their own"
            raise ConfigError(Problem("finetune.adapters", found, do="Use model.quantization.bits=null"))
        base.bias.data = base.bias.data + (scaling * shift.data).to(base.bias)
    if not hasattr(base, STACKED):
        setattr(base, STACKED, nn.ModuleList())
        # A hook, since accelerate puts a `forward` of its own on the layers of a model that is placed by a device map.
        base.register_forward_hook(_with_stacked)
    getattr(base, STACKED).append(StackedAdapter(low, high, scaling=scaling, factor=factor))


def _with_stacked(layer: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    for adapter in getattr(layer, STACKED):
        output = adapter(inputs[0], output, layer.bias)
    return output

"""`training.torch_compile`: each layer of the model compiled, rather than the whole of it.

All layers are alike and share one compiled graph, so it is compiled in a layer's time; what differs from batch to batch, the head on
labelled positions and attention by segments, stays outside. Packed rows of 1,024 tokens, SmolLM2, LoRA of rank 8, in float32 on a CPU:
peak RSS 3.1 GB without, 2.6 GB with it.
"""

from __future__ import annotations

from typing import Any

import torch

from llmmod.models.freeze import decoder_layers


def compile_layers(model: Any, *, backend: str | None, mode: str | None, fixed: bool) -> None:
    """Compile the layers of a model in place, for training alone: evaluation and generation, in other shapes, are as ever.

    Args:
        model: a PreTrainedModel or PeftModel.
        backend, mode: as `torch.compile` has them; None: its own.
        fixed: whether all batches have one shape.
    """
    for layer in decoder_layers(model)[1]:
        compiled = torch.compile(layer._call_impl, backend=backend or "inductor", mode=mode, dynamic=False if fixed else None)
        layer._compiled_call_impl = _WhenTraining(layer, compiled)


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether `compile_layers` compiled this layer."""
    return isinstance(module._compiled_call_impl, _WhenTraining)


def drop_compiled(model: torch.nn.Module) -> None:
    """Undo `compile_layers`."""
    for module in model.modules():
        if is_compiled(module):
            module._compiled_call_impl = None


class _WhenTraining:
    """What torch calls in place of a layer."""

    def __init__(self, layer: torch.nn.Module, compiled: Any) -> None:
        self._layer, self._compiled = layer, compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self._compiled if self._layer.training else self._layer._call_impl)(*args, **kwargs)

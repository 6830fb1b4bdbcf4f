"""Normalisation layers in float32 within a model of 16 bits (`finetune.upcast_layernorm`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_HALF = (torch.float16, torch.bfloat16)


def upcast_norms(model: nn.Module) -> list[str]:
    """Hold and compute every normalisation layer in float32, its output cast back, so that the layers around it notice nothing.

    Args:
        model: changed in place; one of float32 stays as it is.

    Returns:
        The names of the layers that changed.
    """
    changed = []
    for name, module in model.named_modules():
        if _is_norm(module) and any(p.dtype in _HALF for p in module.parameters(recurse=False)):
            module.float()
            module.register_forward_pre_hook(_to_float32)
            module.register_forward_hook(_back)
            changed.append(name)
    return changed


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer; models name their own classes (LlamaRMSNorm), but all with norm in them."""
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def _to_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    module._input_dtype = inputs[0].dtype
    return (inputs[0].float(), *inputs[1:])


def _back(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output.to(module._input_dtype)  # type: ignore[arg-type]

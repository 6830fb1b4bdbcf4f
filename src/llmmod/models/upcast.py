"""Parts of a model of 16 bits in float32: its normalisation layers (`finetune.upcast_layernorm`), its head (`finetune.upcast_head`).

A part that is upcast takes 16 bits and computes in float32. Norms give 16 bits back, so that the layers around them notice nothing; the
head gives logits of float32, whose differences 8 bits of mantissa blur: at 16, bfloat16's next number is 16.125.
"""

from __future__ import annotations

import functools
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


def upcast_head(model: Any) -> bool:
    """Hold and compute a language model's head, its logits with it, in float32.

    Embeddings that share its weights are held in float32 too, and give what they gave before: rounded to 16 bits.

    Args:
        model: a PreTrainedModel or PeftModel, changed in place; a head of float32 stays as it is.

    Returns:
        Whether it was changed.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight.dtype not in _HALF:
        return False
    dtype, tied = head.weight.dtype, embeddings.weight is head.weight
    # Of a head that peft trains a copy of, too: beside the copy, its wrapper holds the original, which may be the embeddings'.
    shared = bool({id(p) for p in head.parameters()} & {id(p) for p in embeddings.parameters()})
    head.float()
    head.register_forward_pre_hook(_to_float32)
    if tied:
        embeddings.weight = head.weight
    if shared:
        embeddings.register_forward_hook(functools.partial(_rounded, dtype=dtype))
    return True


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer; models name their own classes (LlamaRMSNorm), but all with norm in them."""
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def _to_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    module._input_dtype = inputs[0].dtype
    return (inputs[0].float(), *inputs[1:])


def _back(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output.to(module._input_dtype)  # type: ignore[arg-type]


def _rounded(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    return output.to(dtype)

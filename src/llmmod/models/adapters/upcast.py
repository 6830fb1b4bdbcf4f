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
_INPUT_DTYPE = "llmmod_input_dtype"  # attribute of a module: the type that it was last given


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
            compute_in_float32(module)
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
    compute_in_float32(head, back=False)
    if tied:
        embeddings.weight = head.weight
    if shared:
        round_output(embeddings, dtype)
    return True


def compute_in_float32(module: nn.Module, *, back: bool = True) -> None:
    """Have a module whose weights are of float32 take 16 bits, by hooks.

    Args:
        module: changed in place.
        back: whether it gives the type that it took, rather than float32.
    """
    module.register_forward_pre_hook(_to_float32, with_kwargs=True)
    if back:
        module.register_forward_hook(_back)


def round_output(module: nn.Module, dtype: torch.dtype) -> None:
    """Have embeddings of float32 give 16 bits, by a hook."""
    module.register_forward_hook(functools.partial(_rounded, dtype=dtype))


def drop_hooks(module: nn.Module) -> None:
    """Undo `compute_in_float32` and `round_output`; the weights keep their type."""
    for hooks, with_kwargs in ((module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs), (module._forward_hooks, {})):
        for number in [number for number, hook in hooks.items() if getattr(hook, "func", hook) in (_to_float32, _back, _rounded)]:
            del hooks[number]
            with_kwargs.pop(number, None)


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer; models name their own classes (LlamaRMSNorm), but all with norm in them."""
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def _to_float32(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = [value for value in (*args, *kwargs.values()) if _is_float(value)]
    vars(module)[_INPUT_DTYPE] = given[0].dtype if given else None
    return tuple(_cast(value, torch.float32) for value in args), {name: _cast(value, torch.float32) for name, value in kwargs.items()}


def _back(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    dtype = vars(module)[_INPUT_DTYPE]
    return tuple(_cast(value, dtype) for value in output) if isinstance(output, tuple) else _cast(output, dtype)


def _rounded(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    return output.to(dtype)


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if _is_float(value) else value

"""float32 in a model of 16 bits: trained weights, normalisation layers, the head.

These are `finetune.trainable_dtype`, `finetune.upcast_layernorm` and `finetune.upcast_head`.

A step of Adam changes a weight by about the learning rate. bfloat16 has 8 bits of precision: next to 0.02 its neighbours are 0.00012 away,
so most steps of 2e-5 would be lost in rounding. In float16, where Adam's epsilon of 1e-8 is 0, some of them would be huge. So trained
weights are in float32 during training (master weights; Micikevicius et al. 2018, 3.1), and `to_stored_dtype` rounds them to their original
dtype after it: later steps compute with the saved values. A checkpoint has float32.

A module whose weights are all in float32 takes inputs in 16 bits, computes in float32 and returns the input's dtype, so that other layers
don't change. The head returns logits in float32, since 8 bits are too few for their differences: after 16, bfloat16's next number is
16.125. In a module that is trained in part (its bias, for example), the trained part is rounded to the dtype of the rest in the forward
pass only, and its gradient is accumulated in float32. A model that is trained as a whole doesn't need that: all of it is in float32.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llmmod.errors import ConfigError, Problem
from llmmod.models.loading.structure import base_model
from llmmod.upstream import require_upstream

require_upstream(__name__)

log = logging.getLogger(__name__)

KEY = "finetune.trainable_dtype"
_HALF = (torch.float16, torch.bfloat16)
_STATE = "llmmod_master_weights"  # attribute of a model that has some
_INPUT_DTYPE = "llmmod_input_dtype"  # attribute of a module: the dtype of its last input
_MASTERS = "llmmod_masters"  # attribute of a module while it computes with rounded weights: the weights themselves
_MOST_SAMPLES = 2**10  # of a tensor
_FEW = 0.9  # share of the change in training that rounding keeps; less is worth a warning


@dataclass
class _MasterWeights:
    """The changes that `to_stored_dtype` undoes.

    Args:
        dtypes: parameter name -> its original dtype.
        first: parameter name -> some of its values before training.
        hooked: names of the modules that got hooks.
    """

    dtypes: dict[str, torch.dtype]
    first: dict[str, torch.Tensor]
    hooked: list[str] = field(default_factory=list)


def hold_master_weights(model: Any) -> None:
    """Convert every trained parameter to float32, so that it works with the rest in 16 bits.

    Args:
        model: a PreTrainedModel or PeftModel whose trained parameters require gradients; changed in place. Adapters are in float32
            already.
    """
    base = base_model(model)
    trained = {id(p) for p in base.parameters() if p.requires_grad and p.dtype in _HALF}
    if not trained:
        return
    head = _trained_head(base, trained)
    # If peft trains a copy of the head, a reference uses the frozen original, which must be as exact.
    ids = trained | ({id(p) for p in head.parameters() if p.dtype in _HALF} if head is not None else set())
    masters = {name: p for name, p in base.named_parameters() if id(p) in ids}
    dtypes, first = {name: p.dtype for name, p in masters.items()}, {name: _sample(p) for name, p in masters.items() if id(p) in trained}
    state = _MasterWeights(dtypes, first)
    for p in masters.values():
        p.data = p.data.float()
    setattr(base, _STATE, state)
    if any(p.dtype in _HALF for p in base.parameters()):
        state.hooked = _hook(base, head, {id(p): dtypes[name] for name, p in masters.items()})


def to_stored_dtype(model: Any) -> bool:
    """Round the weights of `hold_master_weights` to their original dtype, and remove its hooks.

    Args:
        model: changed in place; one without master weights stays unchanged.

    Returns:
        Whether it was changed.
    """
    base = base_model(model)
    state: _MasterWeights | None = vars(base).pop(_STATE, None)
    if state is None:
        return False
    _warn_of_lost_changes(base, state)
    for name, p in base.named_parameters():
        if name in state.dtypes:
            p.data = p.data.to(state.dtypes[name])
    for name in state.hooked:
        _drop_hooks(base.get_submodule(name))
    return True


def check_trained_in_16_bits(model: Any) -> None:
    """Warn of trained weights in bfloat16.

    Raises:
        ConfigError: weights in float16 would be trained without conversion.
    """
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    if torch.float16 in dtypes:
        found = "checkpoint, but the weights are in float16, in which Adam's epsilon is 0 and steps become huge"
        raise ConfigError(Problem(KEY, found, do=f"Use {KEY}=float32, or model.dtype=bfloat16"))
    if torch.bfloat16 in dtypes:
        log.warning(
            "%s=checkpoint: weights are trained in bfloat16, so at each step a change below a 256th of the weight is lost in rounding; at "
            "small learning rates most weights never change.",
            KEY,
        )


def upcast_norms(model: nn.Module) -> list[str]:
    """Convert every normalisation layer to float32, with its output cast back, so that other layers don't change.

    Args:
        model: changed in place; one in float32 stays unchanged.

    Returns:
        The names of the layers that changed.
    """
    changed = []
    for name, module in model.named_modules():
        # Models have their own classes (LlamaRMSNorm), but all names contain norm.
        is_norm = "norm" in type(module).__name__.lower() and next(module.children(), None) is None
        if is_norm and any(p.dtype in _HALF for p in module.parameters(recurse=False)):
            module.float()
            _compute_in_float32(module)
            changed.append(name)
    return changed


def upcast_head(model: Any) -> bool:
    """Convert a language model's head, and so its logits, to float32.

    Embeddings that share its weights are in float32 too, but return the same as before: rounded to 16 bits.

    Args:
        model: a PreTrainedModel or PeftModel, changed in place; a head in float32 stays unchanged.

    Returns:
        Whether it was changed.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight.dtype not in _HALF:
        return False
    dtype, tied = head.weight.dtype, embeddings.weight is head.weight
    # Also if peft trains a copy of the head: its wrapper has the original too, which may be the embeddings' weight.
    shared = bool({id(p) for p in head.parameters()} & {id(p) for p in embeddings.parameters()})
    head.float()
    _compute_in_float32(head, back=False)
    if tied:
        embeddings.weight = head.weight
    if shared:
        embeddings.register_forward_hook(functools.partial(_output_to, dtype=dtype))
    return True


def _compute_in_float32(module: nn.Module, *, back: bool = True) -> None:
    """Add hooks so that a module with weights in float32 takes inputs in 16 bits.

    Args:
        module: changed in place.
        back: whether it returns the input's dtype instead of float32.
    """
    module.register_forward_pre_hook(_input_to_float32, with_kwargs=True)
    if back:
        module.register_forward_hook(_output_to_input_dtype)


def _trained_head(base: Any, trained: set[int]) -> Any:
    """The head with peft's wrapper, if its weights are trained, not an adapter or single tokens on it; else None."""
    head = base.get_output_embeddings()
    own = (p for module in (head.modules() if head is not None else ()) if not _only_holds(module) for p in _own(module).values())
    return head if any(id(p) in trained for p in own) else None


def _hook(base: Any, head: Any, dtypes: dict[int, torch.dtype]) -> list[str]:
    """Add hooks to the modules with one of these parameters (id -> original dtype); returns the modules' names."""
    of_head = set() if head is None else set(head.modules())
    hooked = []
    for name, module in base.named_modules():
        own = {key: dtypes[id(p)] for key, p in _own(module).items() if id(p) in dtypes}
        if module is head:
            _compute_in_float32(module, back=False)
        elif module in of_head or not own or _only_holds(module):
            continue
        elif isinstance(module, nn.Embedding):
            module.register_forward_hook(functools.partial(_output_to, dtype=dtypes[id(module.weight)]))
        elif len(own) == len(_own(module)) and not any(True for child in module.children() for _ in child.parameters()):
            _compute_in_float32(module)
        else:
            module.register_forward_pre_hook(functools.partial(_round_masters, dtypes=own))
            module.register_forward_hook(_restore_masters, always_call=True)  # recomputation under checkpointing ends with an exception
        hooked.append(name)
    return hooked


def _input_to_float32(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.is_floating_point()]
    vars(module)[_INPUT_DTYPE] = given[0].dtype if given else None
    return tuple(_cast(value, torch.float32) for value in args), {name: _cast(value, torch.float32) for name, value in kwargs.items()}


def _output_to_input_dtype(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    dtype = vars(module)[_INPUT_DTYPE]
    return tuple(_cast(value, dtype) for value in output) if isinstance(output, tuple) else _cast(output, dtype)


def _output_to(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    return output.to(dtype)


def _round_masters(module: nn.Module, args: Any, *, dtypes: dict[str, torch.dtype]) -> None:
    vars(module)[_MASTERS] = {name: module._parameters[name] for name in dtypes}
    for name, dtype in dtypes.items():
        module._parameters[name] = module._parameters[name].to(dtype)  # type: ignore[assignment,union-attr]


def _restore_masters(module: nn.Module, args: Any, output: Any) -> None:
    module._parameters.update(vars(module).pop(_MASTERS, {}))


_HOOKS: tuple[Callable[..., Any], ...] = (_input_to_float32, _output_to_input_dtype, _output_to, _round_masters, _restore_masters)


def _drop_hooks(module: nn.Module) -> None:
    """Remove every hook of this module; the weights keep their dtype."""
    before, after = module._forward_pre_hooks, module._forward_hooks
    for hooks, flags in ((before, module._forward_pre_hooks_with_kwargs), (after, module._forward_hooks_always_called)):
        for number in [number for number, hook in hooks.items() if getattr(hook, "func", hook) in _HOOKS]:
            del hooks[number]
            flags.pop(number, None)


def _warn_of_lost_changes(base: Any, state: _MasterWeights) -> None:
    """Warn if rounding undoes much of the training's change: a change of less than half a step of the dtype is lost."""
    along = square = 0.0
    for name, p in base.named_parameters():
        first = state.first.get(name)
        if first is not None and first.numel() == (now := _sample(p)).numel():
            change = now - first
            along += float((change * (now.to(state.dtypes[name]).float() - first)).sum())
            square += float(change.square().sum())
    if square and along / square < _FEW:
        names = " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in state.dtypes.values()}))
        log.warning(
            "the change in training is too small for %s, the checkpoint's dtype, in which it is saved: %.0f %% of it is lost in rounding. "
            "model.dtype=float32 keeps it.",
            names,
            100 * (1 - along / square),
        )


def _sample(p: torch.Tensor) -> torch.Tensor:
    flat = p.detach().flatten()
    return flat[:: max(1, flat.numel() // _MOST_SAMPLES)].float()


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module._parameters.items() if p is not None}


def _only_holds(module: nn.Module) -> bool:
    """Whether a module only has parameters for another: peft's adapters compute in the dtype of their layer."""
    return isinstance(module, nn.ParameterDict | nn.ParameterList)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

"""float32 within a model of 16 bits: trained weights, normalisation layers, the head.

These are `finetune.trainable_dtype`, `finetune.upcast_layernorm` and `finetune.upcast_head`.

A step of Adam moves a weight by about the learning rate. bfloat16 keeps 8 bits of a weight: next to 0.02 its neighbours are 0.00012 away,
so most steps of 2e-5 would be rounded away, each anew. In float16, where Adam's epsilon of 1e-8 is 0, some of them would be huge. So
trained weights are held in float32 while they are trained (master weights; Micikevicius et al. 2018, 3.1), and `to_stored_dtype` rounds
them to the type that they came in once training is over: what later steps compute with is what is saved. A checkpoint keeps float32.

A module whose weights are all in float32 takes 16 bits, computes in float32 and gives back the type that it was given, so that the layers
around it notice nothing. The head gives logits of float32, whose differences 8 bits of mantissa blur: at 16, bfloat16's next number is
16.125. Of a module that is trained in part (its bias, say) the trained part is rounded to the type of the rest, forward alone, and its
gradient is added up in float32. A model that is trained as a whole needs none of that: all of it is in float32.
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
_INPUT_DTYPE = "llmmod_input_dtype"  # attribute of a module: the type that it was last given
_MASTERS = "llmmod_masters"  # attribute of a module while it computes with rounded weights: the weights themselves
_MOST_SAMPLES = 2**10  # of a tensor
_FEW = 0.9  # of what training changed, kept by rounding: less is worth a warning


@dataclass
class _MasterWeights:
    """What `to_stored_dtype` undoes.

    Args:
        dtypes: parameter name -> the type that it came in.
        first: parameter name -> some of its values before training.
        hooked: names of the modules that got hooks.
    """

    dtypes: dict[str, torch.dtype]
    first: dict[str, torch.Tensor]
    hooked: list[str] = field(default_factory=list)


def hold_master_weights(model: Any) -> None:
    """Hold every parameter that is trained in float32, and let it compute beside what stays in 16 bits.

    Args:
        model: a PreTrainedModel or PeftModel with what is trained set free; changed in place. Adapters are in float32 already.
    """
    base = base_model(model)
    trained = {id(p) for p in base.parameters() if p.requires_grad and p.dtype in _HALF}
    if not trained:
        return
    head = _trained_head(base, trained)
    # Beside a head that peft trains a copy of stands the frozen one, which a reference computes with, and must as exactly.
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
    """Round what `hold_master_weights` holds to the type that it came in, and take its hooks off.

    Args:
        model: changed in place; one that holds nothing stays as it is.

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
    """Warn of trained weights of bfloat16.

    Raises:
        ConfigError: weights of float16 are to be trained as they are.
    """
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    if torch.float16 in dtypes:
        found = "checkpoint, and the weights are of float16, in which Adam's epsilon is 0 and steps become huge"
        raise ConfigError(Problem(KEY, found, do=f"Use {KEY}=float32, or model.dtype=bfloat16"))
    if torch.bfloat16 in dtypes:
        log.warning(
            "%s=checkpoint: weights are trained in bfloat16, and of a weight's change what is below a 256th of it is rounded away at each "
            "step; at small learning rates most weights never move.",
            KEY,
        )


def upcast_norms(model: nn.Module) -> list[str]:
    """Hold and compute every normalisation layer in float32, its output cast back, so that the layers around it notice nothing.

    Args:
        model: changed in place; one of float32 stays as it is.

    Returns:
        The names of the layers that changed.
    """
    changed = []
    for name, module in model.named_modules():
        # Models name their own classes (LlamaRMSNorm), but all with norm in them.
        is_norm = "norm" in type(module).__name__.lower() and next(module.children(), None) is None
        if is_norm and any(p.dtype in _HALF for p in module.parameters(recurse=False)):
            module.float()
            _compute_in_float32(module)
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
    _compute_in_float32(head, back=False)
    if tied:
        embeddings.weight = head.weight
    if shared:
        embeddings.register_forward_hook(functools.partial(_output_to, dtype=dtype))
    return True


def _compute_in_float32(module: nn.Module, *, back: bool = True) -> None:
    """Have a module whose weights are of float32 take 16 bits, by hooks.

    Args:
        module: changed in place.
        back: whether it gives the type that it took, rather than float32.
    """
    module.register_forward_pre_hook(_input_to_float32, with_kwargs=True)
    if back:
        module.register_forward_hook(_output_to_input_dtype)


def _trained_head(base: Any, trained: set[int]) -> Any:
    """The head with peft's wrapper around it, where weights of it are trained rather than an adapter or single tokens on it; else None."""
    head = base.get_output_embeddings()
    own = (p for module in (head.modules() if head is not None else ()) if not _only_holds(module) for p in _own(module).values())
    return head if any(id(p) in trained for p in own) else None


def _hook(base: Any, head: Any, dtypes: dict[int, torch.dtype]) -> list[str]:
    """Hooks for the modules that have one of these parameters, id -> the type that it came in; the modules' names."""
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
            module.register_forward_hook(_restore_masters, always_call=True)  # recomputation under checkpointing ends by an exception
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
    """Take every hook of this module off; the weights keep their type."""
    before, after = module._forward_pre_hooks, module._forward_hooks
    for hooks, flags in ((before, module._forward_pre_hooks_with_kwargs), (after, module._forward_hooks_always_called)):
        for number in [number for number, hook in hooks.items() if getattr(hook, "func", hook) in _HOOKS]:
            del hooks[number]
            flags.pop(number, None)


def _warn_of_lost_changes(base: Any, state: _MasterWeights) -> None:
    """Tell where rounding takes back much of what training changed: a change of less than half of a step of the type is lost."""
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
            "what training changed is too little for %s, the checkpoint's type, in which it is saved: %.0f %% of it is rounded away. "
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
    """Whether a module only holds parameters for another: peft's adapters compute in the type of the layer that they are on."""
    return isinstance(module, nn.ParameterDict | nn.ParameterList)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

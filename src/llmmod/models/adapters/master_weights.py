"""What is trained of a model of 16 bits, held in float32 while it is trained (`finetune.trainable_dtype`; Micikevicius et al. 2018, 3.1).

A step of Adam moves a weight by about the learning rate. bfloat16 keeps 8 bits of a weight: next to 0.02 its neighbours are 0.00012 away,
so that most steps of 2e-5 would be rounded away, each anew. In float16, where Adam's epsilon of 1e-8 is 0, some of them would be huge.

A module whose weights are all trained computes in float32 and gives back the type that it was given; the head gives logits of float32. Of
a module that is trained in part (its bias, say) the trained part is rounded to the type of the rest, forward alone, and its gradient
is added up in float32. A model that is trained as a whole needs none of that: it is one of float32.

Once training is over, `to_stored_dtype` rounds the weights to the type that they came in: what later steps compute with is what is saved.
A checkpoint that training goes on from keeps float32.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llmmod.errors import ConfigError, Problem
from llmmod.models.adapters.upcast import compute_in_float32, drop_hooks, round_output

log = logging.getLogger(__name__)

KEY = "finetune.trainable_dtype"
_HALF = (torch.float16, torch.bfloat16)
_HELD = "llmmod_master_weights"  # attribute of a model that holds some
_LENT = "llmmod_masters"  # attribute of a module while it computes with rounded weights
_MOST_SAMPLES = 2**10  # of a tensor
_FEW = 0.9  # of what training changed, kept by rounding: fewer are worth a warning


@dataclass
class _Held:
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
    base = _base(model)
    trained = {id(p) for p in base.parameters() if p.requires_grad and p.dtype in _HALF}
    if not trained:
        return
    head = _trained_head(base, trained)
    # Beside a head that peft trains a copy of stands the frozen one, which a reference computes with, and must as exactly.
    ids = trained | ({id(p) for p in head.parameters() if p.dtype in _HALF} if head is not None else set())
    held = {name: p for name, p in base.named_parameters() if id(p) in ids}
    state = _Held({name: p.dtype for name, p in held.items()}, {name: _sample(p) for name, p in held.items() if id(p) in trained})
    for p in held.values():
        p.data = p.data.float()
    setattr(base, _HELD, state)
    if any(p.dtype in _HALF for p in base.parameters()):
        state.hooked = _hook(base, head, {id(p): state.dtypes[name] for name, p in held.items()})


def to_stored_dtype(model: Any) -> bool:
    """Round what `hold_master_weights` holds to the type that it came in, and take its hooks off.

    Args:
        model: changed in place; one that holds nothing stays as it is.

    Returns:
        Whether it was changed.
    """
    base = _base(model)
    state: _Held | None = vars(base).pop(_HELD, None)
    if state is None:
        return False
    _warn_of_lost(base, state)
    for name, p in base.named_parameters():
        if name in state.dtypes:
            p.data = p.data.to(state.dtypes[name])
    for name in state.hooked:
        module = base.get_submodule(name)
        drop_hooks(module)
        _drop_rounding(module)
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


def _trained_head(base: Any, trained: set[int]) -> Any:
    """The head with peft's wrapper around it, where weights of it are trained rather than an adapter or single tokens on it; else None."""
    head = base.get_output_embeddings()
    own = (p for module in (head.modules() if head is not None else ()) if not _is_list(module) for p in _own(module).values())
    return head if any(id(p) in trained for p in own) else None


def _hook(base: Any, head: Any, dtypes: dict[int, torch.dtype]) -> list[str]:
    """Hooks for the modules that have one of these parameters, id -> the type that it came in; the modules' names."""
    of_head = set() if head is None else set(head.modules())
    hooked = []
    for name, module in base.named_modules():
        own = {key: p for key, p in _own(module).items() if id(p) in dtypes}
        if module is head:
            compute_in_float32(module, back=False)
        elif module in of_head or not own or _is_list(module):
            continue
        elif isinstance(module, nn.Embedding):
            round_output(module, dtypes[id(module.weight)])
        elif len(own) == len(_own(module)) and not any(True for child in module.children() for _ in child.parameters()):
            compute_in_float32(module)
        else:
            _round_parameters(module, {key: dtypes[id(p)] for key, p in own.items()})
        hooked.append(name)
    return hooked


def _round_parameters(module: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Have a module compute with some of its parameters rounded, by hooks."""
    module.register_forward_pre_hook(functools.partial(_lend_rounded, dtypes=dtypes))
    module.register_forward_hook(_take_back, always_call=True)  # recomputation under gradient checkpointing ends by an exception


def _lend_rounded(module: nn.Module, args: Any, *, dtypes: dict[str, torch.dtype]) -> None:
    vars(module)[_LENT] = {name: module._parameters[name] for name in dtypes}
    for name, dtype in dtypes.items():
        module._parameters[name] = module._parameters[name].to(dtype)  # type: ignore[assignment,union-attr]


def _take_back(module: nn.Module, args: Any, output: Any) -> None:
    module._parameters.update(vars(module).pop(_LENT, {}))


def _drop_rounding(module: nn.Module) -> None:
    for hooks, flags in ((module._forward_pre_hooks, {}), (module._forward_hooks, module._forward_hooks_always_called)):
        for number in [number for number, hook in hooks.items() if getattr(hook, "func", hook) in (_lend_rounded, _take_back)]:
            del hooks[number]
            flags.pop(number, None)


def _warn_of_lost(base: Any, state: _Held) -> None:
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


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module._parameters.items() if p is not None}


def _is_list(module: nn.Module) -> bool:
    """Whether a module only holds parameters for another: peft's adapters compute in the type of the layer that they are on."""
    return isinstance(module, nn.ParameterDict | nn.ParameterList)

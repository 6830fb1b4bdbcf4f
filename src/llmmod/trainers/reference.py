"""The model as it was before training, which preferences are compared with: how it is had without a second one where possible.

The reference: the policy as it was before training, without a second model.

With a new adapter it is the same model with the adapter off. Otherwise the weights that are trained are kept as they were, and take the
places of the trained ones while the reference is asked: what is frozen is shared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from llmmod.models.adapters.init import as_base, has_lost_base

_FROM_ZERO = ("lora_B", "lora_embedding_A")  # as peft 0.21 has it


def adapter_is_noop(adapted: Any) -> bool:
    """Whether the model with its adapter off is what it is with it: so it is with a new adapter of almost every kind, before training.

    Args:
        adapted: a PeftModel. One that goes on from an earlier training, or was made of the model's own weights (PiSSA, OLoRA, LoftQ), is
            something from the start; and biases that are trained with an adapter aren't switched off with it.
    """
    from_zero = (tensor for name, tensor in adapted.named_parameters() if any(part in name for part in _FROM_ZERO))
    return adapted.active_peft_config.bias == "none" and not any(tensor.any() for tensor in from_zero)


def frozen_copy(model: Any, *, apart: bool = False) -> Any:
    """A copy of a model that isn't trained, with tensors of its own only for those that are trained in the model.

    Args:
        model: a PreTrainedModel, before a trainer has put a `forward` of its own on it.
        apart: with all tensors its own.
    """
    frozen = [*(tensor for tensor in model.parameters() if not tensor.requires_grad), *model.buffers()]
    shared = {} if apart else {id(tensor): tensor for tensor in frozen}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


class NoReferenceModel(torch.nn.Module):
    """Stands where trl (1.16) would make a reference model or adapter of its own.

    Args:
        config: of the model that is trained.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self) -> None:
        """Nothing, and nobody calls it."""


def initial_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """Copies of what will be trained; None where adapters that add nothing yet are, since the reference then is the model without them."""
    if hasattr(model, "peft_config") and adapter_is_noop(model):
        return None
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def reference(model: Any, initial: dict[str, torch.Tensor] | None) -> AbstractContextManager[None] | None:
    """A context in which the model is the reference; None where nobody knows what it was: `has_reference`."""
    if initial is not None:
        return _exchanged(model, initial)
    return as_base(model) if has_reference(model) else None


def has_reference(model: Any) -> bool:
    """Whether what the model was before it got adapters can be had from it: not where it has none, and not with LoftQ's."""
    return hasattr(model, "peft_config") and not has_lost_base(model)


@contextmanager
def _exchanged(model: Any, initial: dict[str, torch.Tensor]) -> Iterator[None]:
    """The weights change places, and back again; nothing is copied, unless the model was rounded to its checkpoint's type since."""
    places = [(parameter, initial[name]) for name, parameter in model.named_parameters() if name in initial]
    trained = [parameter.data for parameter, _ in places]
    for parameter, weights in places:
        parameter.data = weights.to(parameter.dtype)
    try:
        yield
    finally:
        for (parameter, _), weights in zip(places, trained, strict=True):
            parameter.data = weights

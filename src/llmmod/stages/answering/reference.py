"""The reference: the policy as it was before training, without a second model.

With a new adapter it is the same model with the adapter off. Otherwise the weights that are trained are kept as they were, and take the
places of the trained ones while the reference is asked: what is frozen is shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from llmmod.models.lora.mutated import as_base, has_lost_base
from llmmod.models.reference import starts_as_nothing


def initial_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """Copies of what will be trained; None where adapters that add nothing yet are, since the reference then is the model without them."""
    if hasattr(model, "peft_config") and starts_as_nothing(model):
        return None
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def reference(model: Any, initial: dict[str, torch.Tensor] | None) -> AbstractContextManager[None] | None:
    """A context in which the model is the reference; None where nobody knows what it was: `base_is_known`."""
    if initial is not None:
        return _exchanged(model, initial)
    return as_base(model) if base_is_known(model) else None


def base_is_known(model: Any) -> bool:
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

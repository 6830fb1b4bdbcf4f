"""The model as it was before training, which preferences are compared with: how it is had without a second one where possible."""

from __future__ import annotations

import copy
from typing import Any

import torch

_FROM_ZERO = ("lora_B", "lora_embedding_A")  # as peft 0.21 has it


def starts_as_nothing(adapted: Any) -> bool:
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


class Nobody(torch.nn.Module):
    """Stands where trl (1.16) would make a reference model or adapter of its own.

    Args:
        config: of the model that is trained.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self) -> None:
        """Nothing, and nobody calls it."""

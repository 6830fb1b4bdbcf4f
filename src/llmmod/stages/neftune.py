"""NEFTune (Jain et al. 2023): noise on the embeddings in training, uniform within alpha / sqrt(L d).

L is the number of tokens of the sequence itself, as in the paper's own code (github.com/neelsjain/NEFTune). transformers' hook (5.23) takes
the width of the padded batch, so that an example's noise would hang on what it is batched with, and a row of several examples would have
the noise of one long one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from llmmod.models.segments import BOUNDARIES, KEYS


@contextmanager
def noisy_embeddings(model: Any, inputs: Mapping[str, torch.Tensor], *, alpha: float | None) -> Iterator[None]:
    """Within it, a model in training mode adds noise to the embeddings of `inputs`, where a gradient is taken.

    Args:
        model: a PreTrainedModel or PeftModel.
        inputs: a batch; what of it is padding, `attention_mask` says, and where examples end within a row, `cu_seq_lens_q`.
        alpha: `training.neftune_noise_alpha`; None: nothing is added, and the model isn't touched.
    """
    if alpha is None:
        yield
        return
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    scale = alpha * (sequence_lengths(inputs) * base.get_input_embeddings().weight.shape[-1]).clamp(min=1).rsqrt()
    scale = torch.where(sequence_lengths(inputs) > 0, scale, 0.0)

    def add_noise(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training or not torch.is_grad_enabled():
            return output  # a reference's, or of kto's mismatched pairs: they are told, not learnt
        return output + torch.empty_like(output).uniform_(-1, 1) * scale.to(output)[..., None]

    hook = base.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        hook.remove()


def sequence_lengths(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """How many tokens the sequence has that a token belongs to, 0 where it is padding; int64 [batch, seq]."""
    ids = inputs["input_ids"]
    if BOUNDARIES in inputs:
        lengths = inputs.get(KEYS, inputs[BOUNDARIES]).diff().long()
        return lengths.repeat_interleave(inputs[BOUNDARIES].diff().long())[None].expand(ids.shape)
    mask = inputs.get("attention_mask")
    if mask is None:
        return torch.full(ids.shape, ids.shape[1], device=ids.device)
    return mask.sum(1, keepdim=True) * mask

"""Which implementations of attention this machine can compute: known before a model is loaded."""

from __future__ import annotations

import torch

from llmmod.errors import ConfigError, Problem

_KEY = "model.attn_implementation"
_NEED = {
    "flash_attention_2": "its kernels are for GPUs",
    "flash_attention_3": "its kernels are for GPUs",
    "flex_attention": "on a CPU it has no gradient, and compiles for minutes (torch 2.13)",
}


def check_attention(name: str | None) -> None:
    """Nothing, where an implementation can be computed here.

    Args:
        name: as `attn_implementation` has it; None: transformers' own choice.

    Raises:
        ConfigError: it needs an accelerator, and there is none.
    """
    if name in _NEED and not torch.accelerator.is_available():
        found = f"{name} needs an accelerator: {_NEED[name]}"
        raise ConfigError(Problem(_KEY, found, "Allowed here: sdpa, eager, null"))

"""Where a model runs that no trainer has placed."""

from __future__ import annotations

import os
from typing import Any

import torch


def is_spread(model: Any) -> bool:
    """Whether a model's parts lie on several devices (`model.device_map`), or wait on the disk or in memory until they are used."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def ready_to_answer(model: Any, *, use_cpu: bool = False) -> Any:
    """The same model in evaluation mode, on this process's accelerator where there is one and nothing else has placed it.

    Args:
        model: a PreTrainedModel or PeftModel.
        use_cpu: leave an accelerator alone, as `training.use_cpu` asks.
    """
    placed = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False) or model.device.type != "cpu"
    if torch.accelerator.is_available() and not use_cpu and not placed:
        kind = torch.accelerator.current_accelerator()
        assert kind is not None  # is_available() said so
        model.to(torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0"))))
    return model.eval()

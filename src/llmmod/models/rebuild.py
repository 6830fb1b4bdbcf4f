"""A model made anew from a model: the same class and configuration, other or the same tensors.

transformers builds from a state dict as it does from a checkpoint, so buffers that no checkpoint holds (rotary frequencies), tied
weights and quantization come out right, and the tensors are taken over, not copied.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from llmmod.models.cpu_kernels import keep_differentiable
from llmmod.models.own_length import keep_own_lengths
from llmmod.models.quantize import plain_linears


def rebuilt(model: Any, state: Mapping[str, torch.Tensor] | None = None, **arguments: Any) -> Any:
    """A plain or newly quantized model of the same class, which shares its tensors with `state`.

    Args:
        model: a PreTrainedModel, which gives class, configuration and generation settings; left as it is.
        state: parameter name -> tensor; None: the model's own.
        arguments: more of from_pretrained's, e.g. `quantization_config`, `device_map`.

    Raises:
        ValueError: `state` leaves parameters without a value.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    own_linears = plain_linears(config.model_type) if arguments.get("quantization_config") else nullcontext()
    with quiet_bars(), own_linears:
        new, info = type(model).from_pretrained(
            None,
            config=config,
            state_dict=dict(model.state_dict() if state is None else state),
            output_loading_info=True,
            **{"dtype": model.dtype, "attn_implementation": config._attn_implementation} | arguments,
        )
    if info["missing_keys"]:
        raise ValueError(f"no value for {sorted(info['missing_keys'])}")
    keep_differentiable(new)
    keep_own_lengths(new)
    set_name(new, model.config._name_or_path)
    if model.can_generate():
        new.generation_config = copy.deepcopy(model.generation_config)
    return new


def set_name(model: Any, name: str) -> None:
    """Record where a model came from: in its configuration, and where peft takes an adapter's base from."""
    model.config._name_or_path = name
    model.name_or_path = name


@contextmanager
def quiet_bars() -> Iterator[None]:
    """While it lasts, transformers draws no progress bars, which would count what is in memory already."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()

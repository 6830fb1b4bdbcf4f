"""The parts of a loaded model: the model under its adapters, its layers, its head, its number of parameters; and rebuilding it.

`rebuild_model` makes a plain or newly quantized model from one in memory. transformers builds from a state dict as from a checkpoint, so
that buffers that aren't in checkpoints (rotary frequencies), tied weights and quantization are right; tensors are shared with the original,
not copied.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from llmmod.errors import ConfigError, Problem
from llmmod.models.attention.rope import use_per_sequence_rope
from llmmod.models.loading.quantization import keep_differentiable, plain_linears
from llmmod.upstream import require_upstream

require_upstream(__name__)


def base_model(model: Any) -> Any:
    """The PreTrainedModel under peft's adapters; a model without adapters is itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def unwrapped(model: Any) -> Any:
    """The PreTrainedModel within the wrappers of accelerate and the adapters of peft."""
    while hasattr(model, "module") and isinstance(model.module, nn.Module):
        model = model.module
    return base_model(model)


@contextmanager
def head_on_positions(model: Any, row: torch.Tensor, position: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """A context in which the model's head gets only the hidden states of these positions, [1, positions, channels]; the list has them.

    It is a hook, since families have different operations between trunk and head, and after the head: scales, soft caps, norms.

    Args:
        model: a PreTrainedModel or PeftModel, or a trainer's wrapper.
        row, position: of each in the batch, int64 [positions].
    """
    kept: list[torch.Tensor] = []

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        chosen = args[0][row.to(args[0].device), position.to(args[0].device)]
        kept.append(chosen)
        return (chosen[None], *args[1:])

    handle = unwrapped(model).get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield kept
    finally:
        handle.remove()


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of a model's layers, and its dotted name: `model.layers`, or `transformer.h`.

    Raises:
        ConfigError: the model doesn't have such a list.
    """
    depth = model.config.get_text_config().num_hidden_layers
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not found:
        raise ConfigError(Problem("finetune", f"{type(model).__name__} doesn't have a list of {depth} layers to choose from"))
    return min(found, key=lambda item: item[0].count("."))


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters, with shared ones counted once.

    Args:
        trained: those that require gradients.
        total: all.
    """

    trained: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trained / self.total if self.total else 0.0
        return f"{self.trained:,} of {self.total:,} parameters are trained ({share:.2f} %)"


def count_parameters(model: Any) -> ParameterCount:
    """The numbers of a model's parameters; a packed or sharded weight counts as its original weights."""
    sizes = []
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)  # of bitsandbytes.nn.Params4bit: two weights per byte
        here = getattr(parameter, "ds_numel", parameter.numel())  # of ZeRO 3, between two uses
        sizes.append((here if state is None else math.prod(state.shape), parameter.requires_grad))
    return ParameterCount(trained=sum(size for size, trained in sizes if trained), total=sum(size for size, _ in sizes))


def set_name(model: Any, name: str) -> None:
    """Set a model's name: in its configuration, and where peft reads the name of an adapter's base."""
    model.config._name_or_path = name
    model.name_or_path = name


def rebuild_model(model: Any, state: Mapping[str, torch.Tensor] | None = None, **arguments: Any) -> Any:
    """A plain or newly quantized model of the same class, which shares its tensors with `state`.

    Args:
        model: a PreTrainedModel with the class, configuration and generation settings; it isn't changed.
        state: parameter name -> tensor; None: the model's own.
        arguments: other arguments of from_pretrained, e.g. `quantization_config`, `device_map`.

    Raises:
        ValueError: `state` leaves parameters without a value.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    own_linears = plain_linears(config.model_type) if arguments.get("quantization_config") else nullcontext()
    shows_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # it would show the loading of tensors that are in memory already
    try:
        with own_linears:
            new, info = type(model).from_pretrained(
                None,
                config=config,
                state_dict=dict(model.state_dict() if state is None else state),
                output_loading_info=True,
                **{"dtype": model.dtype, "attn_implementation": config._attn_implementation} | arguments,
            )
    finally:
        if shows_bars:
            transformers_logging.enable_progress_bar()
    if info["missing_keys"]:
        raise ValueError(f"no value for {sorted(info['missing_keys'])}")
    keep_differentiable(new)
    use_per_sequence_rope(new)
    set_name(new, model.config._name_or_path)
    if model.can_generate():
        new.generation_config = copy.deepcopy(model.generation_config)
    return new


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, or another forward than its class's."""
    return bool(module._forward_hooks or module._forward_pre_hooks or ("forward" in vars(module) and not _is_cast_alone(module)))


def _is_cast_alone(module: nn.Module) -> bool:
    """Whether accelerate (1.15) replaced a forward only for autocast, which is active around us anyway, or is no longer needed.

    `Accelerator.prepare` wraps a model's forward in autocast; `unwrap_model` leaves the innermost one, without the wrappers.
    """
    put: Any = vars(module)["forward"]
    if "_hf_hook" in vars(module) or inspect.unwrap(getattr(put, "__func__", put)) is not inspect.unwrap(type(module).forward):
        return False
    return "_original_forward" not in vars(module) or torch.is_autocast_enabled(next(module.parameters()).device.type)

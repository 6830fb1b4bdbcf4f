"""Quantized weights: `model.quantization.*` as transformers takes it (bitsandbytes; Dettmers et al. 2022, 2023)."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from peft import prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig

from llmmod.errors import ConfigError, Problem, did_you_mean
from llmmod.models.cpu_kernels import mend_unpacking, pack_in_parts
from llmmod.schema.base import Dtype
from llmmod.schema.quantization import CHOICES, QuantizationConf, bitsandbytes_arguments

_KEY = "model.quantization"
STACKED = "stacked"  # attribute of a quantized layer: the adapters that stay beside its weight, see `models.lora.stacked`
_QUANTIZED = ("Params4bit", "Int8Params")
_READ_RAW = {"mamba": "dt_proj", "falcon_mamba": "dt_proj"}  # transformers 5.23; on a CPU and beside its kernels alike
_OWN_LINEARS = {"falcon": "transformers.models.falcon.modeling_falcon.FalconLinear"}


def quantization_config(conf: QuantizationConf) -> BitsAndBytesConfig | None:
    """What from_pretrained takes, None where nothing is quantized.

    Raises:
        ConfigError: bits or type that don't exist, or bitsandbytes isn't installed.
    """
    if conf.bits is None:
        return None
    if conf.bits not in (4, 8):
        raise ConfigError(Problem(f"{_KEY}.bits", f"{conf.bits} bits", "Allowed: 4, 8, null"))
    if conf.type not in CHOICES["type"]:
        raise ConfigError(Problem(f"{_KEY}.type", f"no type '{conf.type}'", did_you_mean(conf.type, CHOICES["type"])))
    if importlib.util.find_spec("bitsandbytes") is None:
        do = "Install it: pip install 'llmmod[quantization]'"
        raise ConfigError(Problem(f"{_KEY}.bits", "needs bitsandbytes, which isn't installed", do=do))
    # Each of its 8-bit products says that it casts to float16, whatever the weights' type: two lines a layer and step.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    mend_unpacking()
    pack_in_parts()
    return BitsAndBytesConfig(**bitsandbytes_arguments(conf, compute_dtype=_compute_dtype(conf.compute_dtype)))


def _compute_dtype(chosen: Dtype) -> str:
    """The type of matrix products: `auto` is bfloat16 where the accelerator has it, else float32."""
    if chosen is not Dtype.auto:
        return str(chosen.value)
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


@contextmanager
def plain_linears(model_type: str) -> Iterator[None]:
    """While it lasts, a family that has a class of its own for linear layers is built with torch's.

    transformers 5.23 quantizes modules whose class is exactly nn.Linear; Falcon's, which only adds the bias apart, stay as they are, and
    so would the whole model, with a warning about eetq.
    """
    place = _OWN_LINEARS.get(model_type)
    if place is None:
        yield
        return
    module, _, name = place.rpartition(".")
    with mock.patch.object(importlib.import_module(module), name, nn.Linear):
        yield


def quantized_device_map(asked: Any = None) -> Any:
    """Where quantized weights go, which the trainer can't move: to each process's own accelerator, unless the user asks for another."""
    if asked is not None or not torch.accelerator.is_available():
        return asked
    return {"": int(os.environ.get("LOCAL_RANK", "0"))}


def is_quantized(model: Any) -> bool:
    """Whether layers of a model are quantized."""
    return any(map(is_quantized_layer, model.modules()))


def is_quantized_layer(module: Any) -> bool:
    """Whether a module is a linear layer whose weight is quantized, with an adapter of peft's around it or without."""
    return type(getattr(module, "weight", None)).__name__ in _QUANTIZED


def check_quantized(model: Any) -> None:
    """Nothing, where layers of a model are quantized, and only those that can be.

    Raises:
        ConfigError: none is, or one whose weight the model multiplies by itself.
    """
    if not is_quantized(model):
        found = f"{type(model).__name__} has no layers that bitsandbytes quantizes"
        raise ConfigError(Problem(f"{_KEY}.bits", found, do=f"Use {_KEY}.bits=null"))
    name = _READ_RAW.get(model.config.model_type)
    if any(name == place.rpartition(".")[2] and is_quantized_layer(module) for place, module in model.named_modules()):
        found = f"{type(model).__name__} multiplies by the weight of {name} itself, so that it can't be quantized"
        raise ConfigError(Problem(f"{_KEY}.llm_int8_skip_modules", found, do=f"Set it to [{name},lm_head]"))


def with_float32_parts(model: Any) -> Any:
    """A model whose norms, embeddings and head are in float32 where its layers are quantized, as the QLoRA paper's own code has it.

    Args:
        model: changed in place and frozen, or left as it is where nothing of it is quantized.
    """
    # Where gradient checkpointing is wanted, it's on already.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False) if is_quantized(model) else model


def unpacked_weight(module: Any) -> torch.Tensor:
    """A layer's weight in the type it had before it was quantized (8 bit: float32), or the weight itself where it isn't quantized.

    Adapters that are stacked on a quantized layer are added to it.

    peft's function of the same purpose moves an 8-bit layer on the CPU out of its place, which can't be used afterwards (0.21.2).
    """
    weight: Any = module.weight
    kind = type(weight).__name__
    if kind not in _QUANTIZED:
        return weight  # type: ignore[no-any-return]
    from bitsandbytes import functional

    if kind == "Params4bit":
        unpacked = functional.dequantize_4bit(weight.data, weight.quant_state)
    else:
        scales = module.state.SCB if module.state.SCB is not None else weight.SCB  # the first forward moves them
        unpacked = functional.int8_vectorwise_dequant(weight.data, scales)
    whole = unpacked
    for adapter in getattr(module, STACKED, ()):
        whole = adapter.added_to(whole)
    return whole.to(unpacked.dtype)  # type: ignore[no-any-return]

"""Quantized weights: `model.quantization.*` as transformers takes it (bitsandbytes; Dettmers et al. 2022, 2023).

On a CPU bitsandbytes' kernels (0.50) are kept from two faults, both with AVX512 alone and both without a word:

- A matrix is quantized in runs of 64 weights, whatever its width; but unpacked as if each row began a new run. Where the width is not a
  multiple of 64, most weights come out wrong, by as much as a run's largest.
- With AVX512-BF16, a layer's weights are repacked at its first evaluation, for good, for a kernel that rounds to bfloat16, has no
  gradient (training that goes on afterwards gets none through its layers), and fails where the width is not a multiple of 64.

And on any CPU, packing a matrix into 4 bit takes 16 bytes a weight: for one of a 7B model's, a fifth of the whole packed model. It is
packed a part at a time instead.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig

from llmmod.config.schema.base import Dtype
from llmmod.config.schema.quantization import CHOICES, QuantizationConf, bitsandbytes_arguments
from llmmod.errors import ConfigError, Problem, did_you_mean
from llmmod.upstream import replaced, require_upstream

require_upstream(__name__, "torch")

_KEY = "model.quantization"
STACKED = "stacked"  # attribute of a quantized layer: the adapters that stay active beside its weight, see `models.adapters.merge`
_QUANTIZED = ("Params4bit", "Int8Params")
_READ_RAW = {"mamba": "dt_proj", "falcon_mamba": "dt_proj"}  # transformers 5.23; on a CPU and beside its kernels alike
_OWN_LINEARS = {"falcon": "transformers.models.falcon.modeling_falcon.FalconLinear"}
_PACK = "bitsandbytes::quantize_4bit"
_PACKED_AT_ONCE = 2**16  # weights that are packed together: a multiple of every length that a run can have
_UNPACK = ("cdequantize_blockwise_cpu_nf4_", "cdequantize_blockwise_cpu_fp4_")  # others, of 8 bits, take other arguments


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
    patch_cpu_unpacking()
    patch_cpu_packing()
    return BitsAndBytesConfig(**bitsandbytes_arguments(conf, compute_dtype=_compute_dtype(conf.compute_dtype)))


def _compute_dtype(chosen: Dtype) -> str:
    """The type of matrix products: `auto` is bfloat16 where the accelerator has it, else float32."""
    if chosen is not Dtype.auto:
        return str(chosen.value)
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


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
    with replaced(importlib.import_module(module), name, nn.Linear):
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


def dequantized_weight(module: Any) -> torch.Tensor:
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


def patch_cpu_unpacking() -> None:
    """Have 4-bit weights unpacked in the runs that they were packed in, for the rest of the process."""
    require_upstream(__name__, "bitsandbytes")
    from bitsandbytes.backends.cpu import ops

    if not isinstance(ops.lib, _InRuns):
        ops.lib = _InRuns(ops.lib)


@functools.cache
def patch_cpu_packing() -> None:
    """Have matrices packed into 4 bit a part at a time, to the same bits, for the rest of the process."""
    import bitsandbytes  # noqa: F401  # registers what is replaced

    whole = torch.library.get_kernel(_PACK, "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def pack(weights: torch.Tensor, run: int, kind: str, storage: torch.dtype) -> tuple[torch.Tensor, ...]:
        parts = [whole.call_boxed(keys, part, run, kind, storage) for part in torch.split(weights.reshape(-1), _PACKED_AT_ONCE)]
        return tuple(torch.cat(same) for same in zip(*parts, strict=True))  # packed weights, and each run's largest

    torch.library.register_kernel(_PACK, "cpu", pack)


def keep_differentiable(model: Any) -> None:
    """Keep 4-bit weights as they are while a model is evaluated on a CPU; it is changed in place."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


class _InRuns:
    """bitsandbytes' compiled library, whose unpacking functions get a matrix with a run a row, or all of it in one row."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)
        if not name.startswith(_UNPACK):
            return function

        def unpack(packed: Any, largest: Any, out: Any, run: ctypes.c_longlong, rows: ctypes.c_longlong, width: ctypes.c_longlong) -> None:
            total = rows.value * width.value
            rows, width = (total // run.value, run.value) if total % run.value == 0 else (1, total)  # type: ignore[assignment]
            function(packed, largest, out, run, ctypes.c_longlong(rows), ctypes.c_longlong(width))  # type: ignore[arg-type]

        return unpack

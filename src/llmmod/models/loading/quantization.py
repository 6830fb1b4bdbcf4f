"""Quantized weights: `model.quantization.*` in transformers' form (bitsandbytes; Dettmers et al. 2022, 2023).

On a CPU two faults of bitsandbytes' kernels (0.50) are avoided, both silent and only with AVX512:

- A matrix is quantized in runs of 64 weights, for any width; but unpacked as if each row started a new run. If the width is not a
  multiple of 64, most weights are wrong, by as much as a run's largest.
- With AVX512-BF16, a layer's weights are permanently repacked at its first evaluation, for a kernel that rounds to bfloat16, doesn't have a
  gradient (later training doesn't get one through these layers), and fails if the width is not a multiple of 64.

And on any CPU, packing a matrix into 4 bit needs 16 bytes per weight: for one matrix of a 7B model, a fifth of the whole packed model. It
is packed in parts instead.
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
from llmmod.config.schema.model import QuantizationConf, bitsandbytes_arguments
from llmmod.errors import ConfigError, Problem, did_you_mean
from llmmod.upstream import replaced, require_upstream

require_upstream(__name__, "torch")

_KEY = "model.quantization"
STACKED = "stacked"  # attribute of a quantized layer: its stacked adapters, see `models.adapters.merge`
_QUANTIZED = ("Params4bit", "Int8Params")
_READ_RAW = {"mamba": "dt_proj", "falcon_mamba": "dt_proj"}  # transformers 5.23; on a CPU and with its kernels
_OWN_LINEARS = {"falcon": "transformers.models.falcon.modeling_falcon.FalconLinear"}
_PACK = "bitsandbytes::quantize_4bit"
_PACKED_AT_ONCE = 2**16  # weights that are packed together: a multiple of every run length
_UNPACK = ("cdequantize_blockwise_cpu_nf4_", "cdequantize_blockwise_cpu_fp4_")  # the functions for 8 bits have other arguments


def quantization_config(conf: QuantizationConf) -> BitsAndBytesConfig | None:
    """The argument for from_pretrained; None without quantization.

    Raises:
        ConfigError: bits or type that don't exist, or bitsandbytes isn't installed.
    """
    if conf.bits is None:
        return None
    if conf.bits not in (4, 8):
        raise ConfigError(Problem(f"{_KEY}.bits", f"found {conf.bits}", "Allowed: 4, 8, null"))
    if conf.type not in (types := conf.CHOICES["type"]):
        raise ConfigError(Problem(f"{_KEY}.type", f"found '{conf.type}'", did_you_mean(conf.type, types)))
    if importlib.util.find_spec("bitsandbytes") is None:
        do = "Install it: pip install 'llmmod[quantization]'"
        raise ConfigError(Problem(f"{_KEY}.bits", "needs bitsandbytes, which isn't installed", do=do))
    # Each of its 8-bit products logs that it casts to float16, for any dtype of the weights: two lines per layer and step.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    patch_cpu_unpacking()
    patch_cpu_packing()
    return BitsAndBytesConfig(**bitsandbytes_arguments(conf, compute_dtype=_compute_dtype(conf.compute_dtype)))


def _compute_dtype(chosen: Dtype) -> str:
    """The dtype of matrix products: `auto` is bfloat16 if the accelerator supports it, else float32."""
    if chosen is not Dtype.auto:
        return str(chosen.value)
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


@contextmanager
def plain_linears(model_type: str) -> Iterator[None]:
    """A context in which a family with its own class for linear layers is built with torch's.

    transformers 5.23 quantizes modules whose class is exactly nn.Linear. Falcon's class, which only adds the bias separately, would not be
    quantized, and so would the whole model not, with a warning about eetq.
    """
    place = _OWN_LINEARS.get(model_type)
    if place is None:
        yield
        return
    module, _, name = place.rpartition(".")
    with replaced(importlib.import_module(module), name, nn.Linear):
        yield


def quantized_device_map(asked: Any = None) -> Any:
    """The device map of quantized weights, which the trainer can't move: each process's own accelerator, unless the user sets one."""
    if asked is not None or not torch.accelerator.is_available():
        return asked
    return {"": int(os.environ.get("LOCAL_RANK", "0"))}


def is_quantized(model: Any) -> bool:
    """Whether layers of a model are quantized."""
    return any(map(is_quantized_layer, model.modules()))


def is_quantized_layer(module: Any) -> bool:
    """Whether a module is a linear layer whose weight is quantized, with or without peft's adapter."""
    return type(getattr(module, "weight", None)).__name__ in _QUANTIZED


def check_quantized(model: Any) -> None:
    """Check that layers of a model are quantized, and only those that can be.

    Raises:
        ConfigError: none of them is, or one whose weight the model itself multiplies by.
    """
    if not is_quantized(model):
        found = f"{type(model).__name__} doesn't have layers that bitsandbytes quantizes"
        raise ConfigError(Problem(f"{_KEY}.bits", found, do=f"Use {_KEY}.bits=null"))
    name = _READ_RAW.get(model.config.model_type)
    if any(name == place.rpartition(".")[2] and is_quantized_layer(module) for place, module in model.named_modules()):
        found = f"{type(model).__name__} multiplies by the weight of {name} itself, so it can't be quantized"
        raise ConfigError(Problem(f"{_KEY}.llm_int8_skip_modules", found, do=f"Set it to [{name},lm_head]"))


def with_float32_parts(model: Any) -> Any:
    """A quantized model with norms, embeddings and head in float32, as in the QLoRA paper's code.

    Args:
        model: changed in place and frozen; one without quantized layers is unchanged.
    """
    # Gradient checkpointing is on already, if configured.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False) if is_quantized(model) else model


def dequantized_weight(module: Any) -> torch.Tensor:
    """A layer's weight in its dtype before quantization (8 bit: float32), or the weight itself if it isn't quantized.

    Adapters that are stacked on a quantized layer are added to it.

    peft's own function for this makes an 8-bit layer on the CPU unusable (0.21.2).
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
    """Patch bitsandbytes to unpack 4-bit weights in the runs of their packing, for the rest of the process."""
    require_upstream(__name__, "bitsandbytes")
    from bitsandbytes.backends.cpu import ops

    if not isinstance(ops.lib, _InRuns):
        ops.lib = _InRuns(ops.lib)


@functools.cache
def patch_cpu_packing() -> None:
    """Patch bitsandbytes to pack matrices into 4 bit in parts, with the same bits, for the rest of the process."""
    import bitsandbytes  # noqa: F401  # registers what is replaced

    whole = torch.library.get_kernel(_PACK, "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def pack(weights: torch.Tensor, run: int, kind: str, storage: torch.dtype) -> tuple[torch.Tensor, ...]:
        parts = [whole.call_boxed(keys, part, run, kind, storage) for part in torch.split(weights.reshape(-1), _PACKED_AT_ONCE)]
        return tuple(torch.cat(same) for same in zip(*parts, strict=True))  # packed weights, and each run's largest

    torch.library.register_kernel(_PACK, "cpu", pack)


def keep_differentiable(model: Any) -> None:
    """Prevent that an evaluation on a CPU repacks 4-bit weights; changes the model in place."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


class _InRuns:
    """bitsandbytes' compiled library, whose unpacking functions get a matrix with one run per row, or all of it in one row."""

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

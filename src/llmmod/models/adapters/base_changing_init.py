"""Adapters whose initial values are taken from the base's weights (PiSSA, OLoRA, LoftQ), and their saving.

Meng et al. 2024 (PiSSA) move the largest singular values of a weight W into the adapter, scale * B0 A0, and leave the rest in the base.
With the original W, the trained adapter B A would count them twice. The learned difference, B A - B0 A0, is an adapter of twice the rank.
A run saves this one, so that it fits the original base; checkpoints, from which the same run resumes, are not converted.

LoftQ (Li et al. 2023, algorithm 1) replaces a weight W by its quantized and unpacked value Q; the adapter is the best approximation of the
error W - Q. An adapter can't store the rest of that error, so LoftQ's adapters are saved unchanged, and the base is changed in the same way
when they are loaded (peft does that for all of these). peft (0.21.2) needs a GPU for it and ignores the adapter's scale, so that for a
scale other than 1 the adapter starts as a multiple of the error. `loftq` fixes both; Q is peft's.

`bias=all` and `lora_only` train the base's own biases, in place. Their initial values are stored with the adapter, and restored when the
base is needed, or used without the adapter.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import save_file

from llmmod.models.loading.quantization import patch_cpu_unpacking
from llmmod.upstream import replaced, require_upstream

require_upstream(__name__)

# Values, or prefixes of values (pissa_niter_16), of `init_lora_weights` that move weights from the base to the adapter.
_TAKE_FROM_BASE = ("pissa", "olora", "corda", "lora_ga")
_INITIAL = "llmmod_initial_adapter"
_BIASES = "llmmod_initial_biases"
_ADAPTERS = ("lora_", "modules_to_save")  # in the names of parameters that aren't the base's
_BLOCK = 64  # weights per scale, as in bitsandbytes' Params4bit


def loftq(weight: torch.Tensor, *, bits: int, rank: int, iterations: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight after quantization, float32 [out, in], and the factors A [rank, in] and B [out, rank] of the best B A for its error.

    Args:
        weight: [out, in].
        bits: 4 (nf4) or 8 (a scale for each row).
        rank: of the factors.
        iterations: at least 1: how often the weight minus the factors' product is quantized.
    """
    whole = weight.detach().float()
    rest = whole
    for _ in range(iterations):
        quantized = _rounded(rest, bits)
        left, sizes, right = torch.linalg.svd(whole - quantized, full_matrices=False)
        roots = sizes[:rank].sqrt()
        b, a = left[:, :rank] * roots, roots[:, None] * right[:rank]
        rest = whole - b @ a
    return quantized, a, b


@contextmanager
def loftq_anywhere() -> Iterator[None]:
    """A context in which peft creates LoftQ's adapters with `loftq`, on the weight's device.

    Patches `peft.tuners.lora.layer.LoraLayer.loftq_init`.
    """
    with replaced(LoraLayer, "loftq_init", _init):
        yield


@torch.no_grad()
def _init(layer: Any, name: str, config: Any = None) -> None:
    if name not in layer.lora_A:
        raise NotImplementedError(f"LoftQ is for linear layers, and {type(layer.get_base_layer()).__name__} is not one")
    weight, scale = layer.get_base_layer().weight, abs(layer.scaling[name]) ** 0.5
    bits, iterations = config.loftq_config["loftq_bits"], config.loftq_config["loftq_iter"]
    quantized, a, b = loftq(weight, bits=bits, rank=layer.r[name], iterations=iterations)
    layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = a / scale, b / scale
    weight.data = quantized.to(weight.dtype)


def _rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """A matrix quantized and unpacked."""
    from bitsandbytes import functional

    if bits == 4:
        patch_cpu_unpacking()
        packed, scales = functional.quantize_4bit(weight.contiguous(), blocksize=_BLOCK, quant_type="nf4")
        return functional.dequantize_4bit(packed, scales)  # type: ignore[no-any-return]
    rows, scales, _ = functional.int8_vectorwise_quant(weight.half())
    return functional.int8_vectorwise_dequant(rows, scales)  # type: ignore[no-any-return]


def changes_base(init: Any) -> bool:
    """Whether adapters with this initialisation change the weights of their base."""
    return _takes_from_base(init) or init == "loftq"


def _takes_from_base(init: Any) -> bool:
    return isinstance(init, str) and init.lower().startswith(_TAKE_FROM_BASE)


def remember_initial(adapted: Any) -> None:
    """Store the values that an adapter changes in its base: its initial values, taken from the base, and the base's biases.

    Args:
        adapted: a new PeftModel, before trained values are read into it; changed in place.
    """
    config = adapted.peft_config["default"]
    if _takes_from_base(getattr(config, "init_lora_weights", None)):
        values = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        setattr(adapted, _INITIAL, {name: value.detach().to("cpu", copy=True) for name, value in values.items()})
    if getattr(config, "bias", "none") != "none":
        own = [(p, p.detach().clone()) for name, p in adapted.named_parameters() if "bias" in name and not any(map(name.count, _ADAPTERS))]
        setattr(adapted, _BIASES, own)


def restore_biases(adapted: Any) -> None:
    """Restore the base's own biases, if they were trained with the adapter."""
    for parameter, value in getattr(adapted, _BIASES, ()):
        parameter.data = value.to(parameter)


def save_for_base(adapted: Any, directory: Path) -> None:
    """Overwrite a saved adapter with one that fits the original base; does nothing if the adapter didn't change the base."""
    initial = getattr(adapted, _INITIAL, None)
    if initial is None:
        return
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    values = {name: _difference(name, value.detach().cpu(), initial[name]) for name, value in state.items()}
    save_file({name: value.contiguous() for name, value in values.items()}, directory / "adapter_model.safetensors", {"format": "pt"})
    config = _doubled(adapted.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(str(directory))


def has_lost_base(adapted: Any) -> bool:
    """Whether the original base can't be restored from a PeftModel."""
    return getattr(adapted.active_peft_config, "init_lora_weights", None) == "loftq"


def restore_initial_adapter(adapted: Any) -> bool:
    """Restore an adapter's initial values, taken from its base; returns whether it has any."""
    initial = getattr(adapted, _INITIAL, None)
    if initial is not None:
        set_peft_model_state_dict(adapted, initial)
    return initial is not None


@contextmanager
def as_base(adapted: Any) -> Iterator[None]:
    """A context in which a PeftModel computes like its original base (not possible if `has_lost_base`)."""
    initial = getattr(adapted, _INITIAL, None)
    if initial is None:
        with base_biases(adapted), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")  # they are restored
            with adapted.disable_adapter():
                yield
        return
    now = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    trained = {name: value.detach().clone() for name, value in now.items()}
    set_peft_model_state_dict(adapted, initial)  # the changed base with these is the original base
    try:
        yield
    finally:
        set_peft_model_state_dict(adapted, trained)


@contextmanager
def base_biases(adapted: Any) -> Iterator[None]:
    """A context in which the base of a PeftModel has its original biases."""
    trained = [(parameter, parameter.data) for parameter, _ in getattr(adapted, _BIASES, ())]
    restore_biases(adapted)
    try:
        yield
    finally:
        for parameter, value in trained:
            parameter.data = value


def _difference(name: str, value: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """[A; A0] and [B, -B0], whose product is B A - B0 A0; anything else as it is."""
    if ".lora_A" in name:
        return torch.cat([value, first], dim=0)
    return torch.cat([value, -first], dim=1) if ".lora_B" in name else value


def _doubled(config: Any) -> Any:
    """The configuration of an adapter of twice the rank and the same scale, alpha / r, or alpha / sqrt(r) for rsLoRA."""
    config = copy.deepcopy(config)
    factor = math.sqrt(2) if config.use_rslora else 2
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: factor * alpha for name, alpha in config.alpha_pattern.items()}
    config.r, config.lora_alpha, config.init_lora_weights = 2 * config.r, factor * config.lora_alpha, True
    return config

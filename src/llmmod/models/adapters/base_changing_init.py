"""Adapters that take their first values out of the base's weights (PiSSA, OLoRA, LoftQ), and how they are saved.

Meng et al. 2024 (PiSSA) put the largest singular values of a weight W into the adapter, scale * B0 A0, and leave the rest in the base.
Beside the untouched W, the trained adapter B A would count them twice. What it has learnt, B A - B0 A0, is an adapter of twice the rank,
and that is what a run saves, so that it fits the base as it was; checkpoints, which the same run goes on from, stay as they are.

LoftQ (Li et al. 2023, algorithm 1) makes a weight W its quantized self Q, unpacked again, and the adapter the best approximation of what is
lost, W - Q. No adapter can hold the rest of that error: LoftQ's adapters are saved as they are, and the base is changed again, in the same
way, where they are loaded (as peft has it for all of these). peft (0.21.2) needs a GPU for it and leaves the adapter's scale out, so that
at another scale than 1 the adapter begins as a multiple of what is lost. `loftq` does neither; Q is peft's.

With `bias=all` or `lora_only` it is the base's own biases that are trained, in place. Their first values are kept beside the adapter, and
put back where the base is asked for, or goes on without the adapter.
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

# Values of `init_lora_weights` that change the base, or begin so: pissa_niter_16; what they take out, the adapter holds.
_TAKE_FROM_BASE = ("pissa", "olora", "corda", "lora_ga")
_INITIAL = "llmmod_initial_adapter"
_BIASES = "llmmod_initial_biases"
_ADAPTERS = ("lora_", "modules_to_save")  # in the names of parameters that aren't the base's
_BLOCK = 64  # weights of a scale, as bitsandbytes' Params4bit has it


def loftq(weight: torch.Tensor, *, bits: int, rank: int, iterations: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a weight is after quantizing, float32 [out, in], and the factors A [rank, in] and B [out, rank] of the best B A beside it.

    Args:
        weight: [out, in].
        bits: 4 (nf4) or 8 (a scale a row).
        rank: of the factors.
        iterations: 1 or more: how many times what is quantized is the weight without what the factors hold.
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
    """A context in which peft makes LoftQ's adapters by `loftq`, on the device that a weight is on.

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
    """Whether adapters initialised so change the weights of their base."""
    return _takes_from_base(init) or init == "loftq"


def _takes_from_base(init: Any) -> bool:
    return isinstance(init, str) and init.lower().startswith(_TAKE_FROM_BASE)


def remember_initial(adapted: Any) -> None:
    """Keep what an adapter changes of its base: its own first values, taken out of it, and the base's biases, which are trained in place.

    Args:
        adapted: a PeftModel just made, before trained values are read into it; changed in place.
    """
    config = adapted.peft_config["default"]
    if _takes_from_base(getattr(config, "init_lora_weights", None)):
        values = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        setattr(adapted, _INITIAL, {name: value.detach().to("cpu", copy=True) for name, value in values.items()})
    if getattr(config, "bias", "none") != "none":
        own = [(p, p.detach().clone()) for name, p in adapted.named_parameters() if "bias" in name and not any(map(name.count, _ADAPTERS))]
        setattr(adapted, _BIASES, own)


def restore_biases(adapted: Any) -> None:
    """Give the base its own biases again, where they were trained with the adapter."""
    for parameter, value in getattr(adapted, _BIASES, ()):
        parameter.data = value.to(parameter)


def save_for_base(adapted: Any, directory: Path) -> None:
    """Write over a saved adapter what fits the base as it was; nothing where the adapter did not change it."""
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
    """Whether what the base was can't be had from a PeftModel any more."""
    return getattr(adapted.active_peft_config, "init_lora_weights", None) == "loftq"


def restore_initial_adapter(adapted: Any) -> bool:
    """Give an adapter the values again that it has taken out of its base; whether it has taken any."""
    initial = getattr(adapted, _INITIAL, None)
    if initial is not None:
        set_peft_model_state_dict(adapted, initial)
    return initial is not None


@contextmanager
def as_base(adapted: Any) -> Iterator[None]:
    """A context in which a PeftModel computes what its base did before it got the adapter (`has_lost_base` says where it can't)."""
    initial = getattr(adapted, _INITIAL, None)
    if initial is None:
        with base_biases(adapted), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")  # those are put back
            with adapted.disable_adapter():
                yield
        return
    now = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    trained = {name: value.detach().clone() for name, value in now.items()}
    set_peft_model_state_dict(adapted, initial)  # beside what is left of the base, these are the base
    try:
        yield
    finally:
        set_peft_model_state_dict(adapted, trained)


@contextmanager
def base_biases(adapted: Any) -> Iterator[None]:
    """A context in which the base of a PeftModel has the biases that it had before they were trained with the adapter."""
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

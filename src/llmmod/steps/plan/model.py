"""A training's model built from its configuration alone, with fake tensors instead of weights.

The same code as for the real model builds and prepares it: the checkpoint's configuration, the reward head, the setup of `finetune.*`. Only
the quantized layers are our own: they have the same bytes as bitsandbytes' layers, and unpack a whole matrix for each product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from torch import nn

from llmmod.config.schema.base import Dtype, Weights
from llmmod.config.schema.model import HubConf, ModelConf
from llmmod.config.schema.quantization import QuantizationConf
from llmmod.instantiate import locate
from llmmod.models.loading.build import build_model, model_checkpoint
from llmmod.models.loading.load import load_config
from llmmod.models.loading.quantization import quantization_config
from llmmod.models.loading.structure import base_model, decoder_layers
from llmmod.models.reward import with_reward_head

_RUN = 64  # weights that share a scale (Dettmers et al. 2023, 3)
_SCALES = 256  # scales that share a second one


def planned_model(conf: ModelConf, finetune: Any, *, head: str, hub: HubConf, smoke: bool, tokenizer: Any, on_gpu: bool) -> Any:
    """The model of a training before its first step. Call it inside `memory.without_values`.

    Args:
        conf: `model.*`.
        finetune: `finetune.*`; adapters to start from are not read, since merged adapters take no memory.
        head: `language` or `reward`.
        hub: `hub.*`.
        smoke: build the tiny model of a rehearsal instead.
        tokenizer: the model's tokenizer.
        on_gpu: whether it will run on a GPU.

    Raises:
        ConfigError: the checkpoint's configuration is missing, or the settings contradict each other.
    """
    quantized = quantization_config(conf.quantization)
    plain = replace(conf, weights=Weights.random, quantization=QuantizationConf(), print_structure=False, device_map=None)
    if conf.attn_implementation not in (None, "eager"):
        plain = replace(plain, attn_implementation=None)  # SDPA keeps the same tensors as flash attention
    if conf.dtype is Dtype.auto and not smoke:
        plain = replace(plain, dtype=_stored_dtype(conf, hub))
    model = build_model(plain, hub=hub, smoke=smoke, tokenizer=tokenizer)
    if quantized is not None:
        _quantize(model, conf.quantization, dtype=torch.bfloat16 if on_gpu else torch.float32)
    if head == "reward":
        model = with_reward_head(model, seed=0)
    changes: dict[str, Any] = {"adapters": [], "resume_adapter": False}
    if isinstance(getattr(finetune, "init_lora_weights", True), str):
        changes["init_lora_weights"] = True  # initialisations that read the weights give the same shapes
    return locate(finetune._target_)(model, replace(finetune, **changes))


def _stored_dtype(conf: ModelConf, hub: HubConf) -> Dtype:
    """The dtype of the weights according to a checkpoint's configuration."""
    checkpoint = model_checkpoint(conf)
    if checkpoint.gguf_file is not None:
        return Dtype.float32  # loading unpacks them
    where = {"revision": conf.revision, "trust_remote_code": conf.trust_remote_code or None, "cache_dir": hub.cache_dir, "token": hub.token}
    given = {name: value for name, value in where.items() if value is not None}
    stored = load_config(checkpoint, {}, local_files_only=hub.offline, **given).get_text_config().dtype
    return Dtype.float32 if stored is None else Dtype(str(stored).removeprefix("torch."))


@contextmanager
def with_layers(model: Any, count: int) -> Iterator[None]:
    """A context in which a model has only its last `count` layers, and the trained layers before them.

    Trained and frozen layers differ, so a model that trains some of its layers keeps all of those, and `count` others.
    """
    base = base_model(model)
    name, layers = decoder_layers(base)
    kept = set(varied_layers(layers)[-count:]) | (set(range(len(layers))) - set(varied_layers(layers)))
    owner, text = base.get_submodule(name.rpartition(".")[0]), base.config.get_text_config()
    setattr(owner, name.rpartition(".")[2], nn.ModuleList(layer for number, layer in enumerate(layers) if number in kept))
    depth, text.num_hidden_layers = text.num_hidden_layers, len(kept)
    try:
        yield
    finally:
        setattr(owner, name.rpartition(".")[2], layers)
        text.num_hidden_layers = depth


def varied_layers(layers: nn.ModuleList) -> list[int]:
    """The indices of the layers whose number may vary: all layers, or the frozen ones if others are trained."""
    trained = [number for number, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())]
    return [n for n in range(len(layers)) if n not in trained] if 0 < len(trained) < len(layers) else [*range(len(layers))]


class PlannedLinear(nn.Linear):
    """A linear layer that takes as many bytes as a quantized one.

    Args:
        linear: the layer that it replaces.
        conf: `model.quantization.*`.
        dtype: dtype of its products.
    """

    def __init__(self, linear: nn.Linear, conf: QuantizationConf, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias, self.dtype = linear.in_features, linear.out_features, linear.bias, dtype
        self.stands_for = linear.weight.numel()  # weights
        runs = self.stands_for // _RUN
        scales = runs + 4 * (runs // _SCALES) if conf.double_quant else 4 * runs
        size = self.stands_for // 2 + scales if conf.bits == 4 else self.stands_for + 4 * linear.out_features
        self.weight = nn.Parameter(linear.weight.detach().new_empty(size, dtype=torch.uint8), requires_grad=False)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """The product with the unpacked matrix."""
        shape = (self.out_features, self.in_features)
        found = _Product.apply(given.to(self.dtype), self.weight, shape).to(given.dtype)  # type: ignore[no-untyped-call]
        return found if self.bias is None else found + self.bias.to(found.dtype)


class _Product(torch.autograd.Function):
    """A product that saves only the packed weight and unpacks it again in the backward pass, as bitsandbytes does."""

    @staticmethod
    def forward(ctx: Any, given: torch.Tensor, packed: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """The product."""
        ctx.save_for_backward(packed)
        ctx.shape = shape
        return given @ packed.new_empty(shape, dtype=given.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        """The gradient of the input."""
        (packed,) = ctx.saved_tensors
        return gradient @ packed.new_empty(ctx.shape, dtype=gradient.dtype), None, None


def _quantize(model: Any, conf: QuantizationConf, *, dtype: torch.dtype) -> None:
    """Replace the layers that bitsandbytes quantizes: all linear layers except the head. The rest becomes float32, as for training."""
    layers = decoder_layers(model)[1]
    for parent in [module for layer in layers for module in layer.modules()]:
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PlannedLinear(child, conf, dtype))
    model.is_loaded_in_4bit = True
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)

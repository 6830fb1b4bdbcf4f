"""A model as a training has it, without weights: from its configuration alone, on tensors without values.

It is built and prepared by the same code as the real one: random weights of the checkpoint's configuration, the reward head, what
`finetune.*` trains. Only quantized layers are ours: they hold what bitsandbytes would, and unpack a whole matrix for each product.
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
    """The model of a training before its first step; to be called within `memory.without_values`.

    Args:
        conf: `model.*`.
        finetune: `finetune.*`; adapters that it starts from are not read, as merged they take nothing.
        head: `language` or `reward`.
        hub: `hub.*`.
        smoke: the tiny model of a rehearsal instead.
        tokenizer: whose ids it reads.
        on_gpu: whether it is to run on one.

    Raises:
        ConfigError: there is no configuration, or what is asked of the model doesn't go together.
    """
    quantized = quantization_config(conf.quantization)
    plain = replace(conf, weights=Weights.random, quantization=QuantizationConf(), print_structure=False, device_map=None)
    if conf.attn_implementation not in (None, "eager"):
        plain = replace(plain, attn_implementation=None)  # SDPA keeps what flash attention does
    if conf.dtype is Dtype.auto and not smoke:
        plain = replace(plain, dtype=_stored_dtype(conf, hub))
    model = build_model(plain, hub=hub, smoke=smoke, tokenizer=tokenizer)
    if quantized is not None:
        _quantize(model, conf.quantization, dtype=torch.bfloat16 if on_gpu else torch.float32)
    if head == "reward":
        model = with_reward_head(model, seed=0)
    changes: dict[str, Any] = {"adapters": [], "resume_adapter": False}
    if isinstance(getattr(finetune, "init_lora_weights", True), str):
        changes["init_lora_weights"] = True  # those that are made of the weights have the same shapes
    return locate(finetune._target_)(model, replace(finetune, **changes))


def _stored_dtype(conf: ModelConf, hub: HubConf) -> Dtype:
    """The type that a checkpoint's configuration says its weights have."""
    checkpoint = model_checkpoint(conf)
    if checkpoint.gguf_file is not None:
        return Dtype.float32  # they are unpacked
    where = {"revision": conf.revision, "trust_remote_code": conf.trust_remote_code or None, "cache_dir": hub.cache_dir, "token": hub.token}
    given = {name: value for name, value in where.items() if value is not None}
    stored = load_config(checkpoint, {}, local_files_only=hub.offline, **given).get_text_config().dtype
    return Dtype.float32 if stored is None else Dtype(str(stored).removeprefix("torch."))


@contextmanager
def with_layers(model: Any, count: int) -> Iterator[None]:
    """Within it, a model has its last `count` layers only, and those before them that are trained.

    Layers that are trained differ from those that are not, so a model that trains some of its layers keeps them all, beside `count` others.
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
    """The numbers of the layers that are alike in what is trained of them: all, or those that are frozen where others are trained."""
    trained = [number for number, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())]
    return [n for n in range(len(layers)) if n not in trained] if 0 < len(trained) < len(layers) else [*range(len(layers))]


class PlannedLinear(nn.Linear):
    """A linear layer with the bytes of a quantized one.

    Args:
        linear: the layer that it stands for.
        conf: `model.quantization.*`.
        dtype: of its products.
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
    """Keeps the packed weight alone, and unpacks it again for the gradient, as bitsandbytes does."""

    @staticmethod
    def forward(ctx: Any, given: torch.Tensor, packed: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """The product."""
        ctx.save_for_backward(packed)
        ctx.shape = shape
        return given @ packed.new_empty(shape, dtype=given.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        """The gradient of what is given."""
        (packed,) = ctx.saved_tensors
        return gradient @ packed.new_empty(ctx.shape, dtype=gradient.dtype), None, None


def _quantize(model: Any, conf: QuantizationConf, *, dtype: torch.dtype) -> None:
    """Put planned layers where bitsandbytes has its own: the linear layers but the head; the rest becomes float32, as for training."""
    layers = decoder_layers(model)[1]
    for parent in [module for layer in layers for module in layer.modules()]:
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PlannedLinear(child, conf, dtype))
    model.is_loaded_in_4bit = True
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)

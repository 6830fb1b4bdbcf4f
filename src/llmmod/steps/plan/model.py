"""A training's model built from its configuration alone, with fake tensors instead of weights, and the operations on them.

The same code as for the real model builds and prepares it: the checkpoint's configuration, the reward head, the setup of `finetune.*`. Only
the quantized layers are our own: they have the same bytes as bitsandbytes' layers, and unpack a whole matrix for each product.

A model repeats the same operations in each layer, and a FakeTensorMode (torch 2.13) takes 0.2 ms for each, mostly for its own cache. Here
the outputs of a repeated operation are made like those of the first time, which takes less than half of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from peft import prepare_model_for_kbit_training
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from llmmod.config.schema.base import Dtype, Weights
from llmmod.config.schema.model import HubConf, ModelConf, QuantizationConf
from llmmod.instantiate import locate
from llmmod.models.loading.build import build_model, model_checkpoint
from llmmod.models.loading.load import load_config
from llmmod.models.loading.quantization import quantization_config
from llmmod.models.loading.structure import base_model, decoder_layers
from llmmod.models.reward import with_reward_head
from llmmod.upstream import require_upstream

require_upstream(__name__)

_RUN = 64  # weights that share a scale (Dettmers et al. 2023, 3)
_SCALES = 256  # scales that share a second one
# These share an input's memory in other ways than a view with the same dtype and a distance that follows from the shapes.
_EXCLUDED = ("aten::detach", "aten::alias", "aten::as_strided", "aten::lift_fresh")


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


def is_fake(tensor: Any) -> bool:
    """Whether it is a tensor without values."""
    return isinstance(tensor, FakeTensor)


class FakeOperations:
    """Runs operations on fake tensors: a call with function, arguments and keywords returns the outputs."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: dict[Any, tuple[type | None, list[_Output]] | None] = {}  # signature -> the kind of the outputs, and each of them

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The outputs of an operation."""
        key = _signature((func, args, kwargs)) if _is_function_of_shapes(func) else None
        try:
            known = self._known.get(key)
        except TypeError:  # an argument can't be a part of a key
            key, known = None, None
        given = [*tensors_of(args), *tensors_of(kwargs.values())]
        if known is not None:
            kind, outputs = known
            with in_kernel_invocation_manager(self._mode):
                made = [output.tensor(given) for output in outputs]
            made = [FakeTensor(self._mode, tensor, output.device) for tensor, output in zip(made, outputs, strict=True)]
            return made[0] if kind is None else kind(made)
        with self._mode:
            out = func(*args, **kwargs)
        if key is not None and key not in self._known:
            shares = func.name() == "aten::_unsafe_view" or any(found.alias_info is not None for found in func._schema.returns)
            self._known[key] = _outputs_of(out, given, shares=shares)
        return out


class _Output(NamedTuple):
    """What an operation's output is like.

    Args:
        device: of the fake tensor.
        shape, stride, dtype: as a tensor's.
        source: the number of the input whose memory it shares, and by how many elements it begins later; None: it has its own.
    """

    device: torch.device
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    source: tuple[int, int] | None

    def tensor(self, given: Sequence[torch.Tensor]) -> torch.Tensor:
        """Such a tensor on the device `meta`."""
        made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        if self.source is not None:
            number, later = self.source
            made.set_(given[number].untyped_storage(), given[number].storage_offset() + later, self.shape, self.stride)
        return made


def tensors_of(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors in an operation's arguments or outputs, nested at most once."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (part for part in value if isinstance(part, torch.Tensor))


@cache
def _is_function_of_shapes(func: Any) -> bool:
    """Whether an operation's outputs, apart from their values, follow from the inputs' shapes, strides and dtypes."""
    by_values = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & {*func.tags}
    return not by_values and not func._schema.is_mutable and func.name().partition(".")[0] not in _EXCLUDED


def _signature(value: Any) -> Any:
    """A key that tells apart arguments for which an operation's outputs differ."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device, isinstance(value, FakeTensor)
    if isinstance(value, dict):
        value = [*value.items()]
    return tuple(map(_signature, value)) if isinstance(value, list | tuple) else (type(value), value)


def _outputs_of(out: Any, given: Sequence[torch.Tensor], *, shares: bool) -> tuple[type | None, list[_Output]] | None:
    """The kind of an operation's outputs (None: a single tensor), and what each is like; None if they can't be made again.

    Args:
        out: the outputs.
        given: the tensors among the inputs.
        shares: whether the operation says that its outputs share an input's memory.
    """
    outputs = [out] if isinstance(out, torch.Tensor) else out
    if not isinstance(outputs, list | tuple) or not all(isinstance(tensor, FakeTensor) for tensor in outputs):
        return None
    of_inputs, of_outputs = ([tensor.untyped_storage() for tensor in tensors] for tensors in (given, outputs))  # kept, as ids are compared
    numbers = {id(storage): number for number, storage in enumerate(of_inputs)}
    found: list[_Output] = []
    for tensor, storage in zip(outputs, of_outputs, strict=True):
        number = numbers.get(id(storage))
        if any(tensor is other for other in given) or (number is not None and given[number].dtype != tensor.dtype):
            return None
        if shares and number is None:
            return None
        source = None if number is None else (number, tensor.storage_offset() - given[number].storage_offset())
        found.append(_Output(tensor.fake_device, tuple(tensor.shape), tensor.stride(), tensor.dtype, source))
    own = [id(storage) for storage, output in zip(of_outputs, found, strict=True) if output.source is None]
    return None if len({*own}) != len(own) else (None if outputs is not out else type(out), found)

"""One decoding step: the logits of the next token of each slot, with faster layers, and our own forward if it computes the same.

transformers' forward of a single token calls eleven modules per layer, looks up the attention function, and rotates queries and keys in ten
operations: 9.5 of 35 ms per token in SmolLM2-135M on one thread; the rest is the time of reading the weights. Our forward (`slots`) calls
the same layers (`LeanLayers`, or the modules themselves, with adapters, 4 bit etc.) directly, and the rest of a layer has a third of the
operations. A layer computes the same, except for the order of additions. It is used only if the model's classes are known, it has no hooks,
and its first step gives the same logits with both. The arguments of a layer's attention (scale, sliding window) are those of that step.

PEFT's layer adds `lora_B(lora_A(dropout(x))) * scaling` to the base layer's output: two products, a scaled copy of the second, and a sum
that is a copy, too. For 16 rows and 1,536 channels the scaling and the sum take 48 µs with the second product; one `addmm_` that scales and
adds takes 5 (AMD EPYC, one thread). Looking up adapter, dropout and scale in Python takes as long as the products of a single row.

The layers of a single token take 42 ms in SmolLM2-135M, and 16 of these are not products: a norm has six operations, and on AMD processors
a product calls the kernel that `models.matmul` replaced. `trainers.efficient` does the same for training, where gradients and compiled
layers need PEFT's lookups.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional

from llmmod.models.generation.slots import AttentionArguments, OwnForward, SlotCache
from llmmod.models.loading.structure import base_model, is_hooked
from llmmod.models.matmul import linear

log = logging.getLogger("llmmod")

_KNOWN = ("Llama", "Mistral", "Qwen2", "Qwen3")  # prefixes of transformers' classes whose layers compute the same as those of `slots`
_MOST_DIFFERENCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the logits' norm; a different layer causes about 1
_MOST_DIFFERENCE_ROUNDED = 0.05  # in types of 16 bits
_KINDS = ("Linear", "Linear4bit")  # peft's layers with such a sum
# The arguments of each layer's attention, for models whose first step was the same with both; else the difference as text.
_compared: WeakKeyDictionary[nn.Module, list[AttentionArguments] | str] = WeakKeyDictionary()


class Step:
    """Computes a model's steps; see the module.

    Args:
        model: a PreTrainedModel or PeftModel in evaluation mode.
        layers: the model's.
    """

    def __init__(self, model: Any, layers: LeanLayers) -> None:
        self._model, self._layers = model, layers
        self._base = base_model(model)
        self._own: OwnForward | None = None
        self._reason = _why_not(model)
        if self._reason is not None:
            self._say()
        elif self._base in _compared:
            self._decide(_compared[self._base])

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor, lengths: torch.Tensor, cache: SlotCache) -> torch.Tensor:
        """Logits, [slots, vocabulary].

        Args:
            ids: the newest token of each slot, int64 [slots].
            lengths: tokens before it, int64 [slots].
            cache: of the earlier tokens; prepared by `advance`.
        """
        if self._own is not None:
            return self._own(ids, lengths, cache)
        logits = self._by_model(ids, lengths, cache)
        if self._reason is None:
            self._compare(logits, ids, lengths, cache)
            if self._own is None:
                self._by_model(ids, lengths, cache)  # the cache then has the keys and values of the last forward
        return logits

    def _by_model(self, ids: torch.Tensor, lengths: torch.Tensor, cache: SlotCache) -> torch.Tensor:
        """The same with the model's own forward."""
        with cache.attending(self._model.config), self._layers.used():
            found = self._model(input_ids=ids[:, None], position_ids=lengths[:, None], past_key_values=cache, use_cache=True)
        return found.logits[:, -1]  # type: ignore[no-any-return]

    def _compare(self, logits: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, cache: SlotCache) -> None:
        """Compute a step again with our own forward, and use it from now on if it is the same."""
        own = OwnForward(self._base, self._layers.of, cache.asked)(ids, lengths, cache)
        difference = float((own - logits).norm() / logits.norm())
        same = difference <= _MOST_DIFFERENCE.get(own.dtype, _MOST_DIFFERENCE_ROUNDED)
        _compared[self._base] = list(cache.asked) if same else f"its logits would differ by {difference:.2g}"
        self._decide(_compared[self._base])

    def _decide(self, found: list[AttentionArguments] | str) -> None:
        """Set the forward for later steps; `found` as in `_compared`."""
        if isinstance(found, str):
            self._reason = found
        else:
            self._own = OwnForward(self._base, self._layers.of, found)
        self._say()

    def _say(self) -> None:
        # Only a debug line: at the first token, a chat's answer is being written to the terminal.
        log.debug("%s decodes with %s", type(self._base).__name__, f"its own forward: {self._reason}" if self._reason else "llmmod's")


def _why_not(model: Any) -> str | None:
    """Why our own forward isn't tried; None if it is."""
    base = base_model(model)
    family = type(base).__name__.removesuffix("ForCausalLM")
    inner: Any = getattr(base, "model", None)
    if family not in _KNOWN or not type(base).__module__.startswith("transformers.models.") or not hasattr(inner, "layers"):
        return "its layers are not built like Llama's"
    parts = [(inner, "Model")]
    for layer in inner.layers:
        parts += [(layer, "DecoderLayer"), (layer.self_attn, "Attention"), (layer.mlp, "MLP")]
    # A module that was replaced, or that has hooks.
    other = next((part for part, name in parts if type(part).__name__ != family + name or is_hooked(part)), None)
    other = model if is_hooked(model) else base if is_hooked(base) else other
    return None if other is None else f"{type(other).__name__} has hooks or another forward"


class LeanLayers:
    """Fast functions for a model's layers: LoRA with all active adapters, linear layers, root-mean-square norms.

    PEFT computes LoRA layers with a variant (DoRA), a bias, hooks or merged weights, and those that aren't linear. A norm's class computes
    it if its dtype isn't float32, since transformers converts it, or if it isn't torch's `rms_norm`.

    Args:
        model: a PreTrainedModel or PeftModel in evaluation mode. Its adapters may be trained or replaced later, as long as the parameters
            stay the same objects; after switching adapters on or off, create a new object.
    """

    def __init__(self, model: nn.Module) -> None:
        self._found: dict[nn.Module, Callable[..., torch.Tensor]] = {}
        if torch.is_autocast_enabled(next(model.parameters()).device.type):
            return  # values added in place aren't cast
        for layer in model.modules():
            if "forward" in vars(layer):
                continue  # accelerate replaced its forward
            if hasattr(layer, "variance_epsilon") and _is_rms_norm(layer):
                self._found[layer] = _rms_norm(layer)
            elif type(layer) is nn.Linear and _is_whole(layer.weight):
                self._found[layer] = linear(layer.weight, layer.bias)
            elif isinstance(layer, LoraLayer) and type(layer).__name__ in _KINDS and (adapters := _plain_adapters(layer)):
                self._found[layer] = partial(_forward, type(layer).forward, layer, _base(layer), adapters, adapters[0][0].dtype)

    def of(self, layer: nn.Module) -> Callable[..., torch.Tensor]:
        """The fast function of a layer, or the module itself."""
        return layer if is_hooked(layer) else self._found.get(layer, layer)

    @contextmanager
    def used(self) -> Iterator[None]:
        """A context in which the model uses these functions; without gradients."""
        for layer, forward in self._found.items():
            vars(layer)["forward"] = forward  # like `nn.Module.__setattr__`, in a tenth of its time
        try:
            yield
        finally:
            for layer in self._found:
                del vars(layer)["forward"]


_Adapter = tuple[torch.Tensor, torch.Tensor, float]  # A, transposed [channels, rank]; B, transposed [rank, outputs]; scale


def _plain_adapters(layer: Any) -> list[_Adapter]:
    """The active adapters of a layer; empty if it computes more than the plain sum."""
    if layer.disable_adapters or layer.merged or layer.training:
        return []
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    parts = [part for name in names for part in (layer.lora_A[name], layer.lora_B[name])]
    if any(type(part) is not nn.Linear or part.bias is not None or is_hooked(part) or not _is_whole(part.weight) for part in parts):
        return []
    if any(name in layer.lora_variant for name in names) or len({part.weight.dtype for part in parts}) > 1:
        return []
    return [(layer.lora_A[name].weight.t(), layer.lora_B[name].weight.t(), layer.scaling[name]) for name in names]


def _base(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function for the base layer's output, a tensor that may be changed."""
    base = layer.base_layer
    if type(base) is not nn.Linear or is_hooked(base) or not _is_whole(base.weight):
        return base  # type: ignore[no-any-return]
    return linear(base.weight, base.bias)


def _rms_norm(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function for a norm: torch's own, which has six operations on a CPU; for a single row there, three."""
    weight, eps = layer.weight, layer.variance_epsilon
    many = partial(functional.rms_norm, normalized_shape=weight.shape, weight=weight, eps=eps)
    if weight.device.type != "cpu":
        return many
    channels, zero = weight.numel(), torch.zeros_like(weight)

    def norm(x: torch.Tensor) -> torch.Tensor:
        if x.numel() != channels:
            return many(x)
        row = x.reshape(-1)
        return torch.addcmul(zero, x, weight, value=(torch.dot(row, row).item() / channels + eps) ** -0.5)

    return norm


@torch.no_grad()
def _is_rms_norm(layer: Any) -> bool:
    """Whether a norm computes the same as torch's; Gemma's, for example, multiplies by its weight plus 1."""
    weight: Any = getattr(layer, "weight", None)
    if not _is_whole(weight) or weight.dtype is not torch.float32 or is_hooked(layer):
        return False
    x = torch.linspace(-2, 3, weight.numel(), dtype=weight.dtype, device=weight.device).reshape(1, 1, *weight.shape)
    return torch.allclose(layer(x), _rms_norm(layer)(x), rtol=1e-5, atol=1e-6)


def _is_whole(weight: Any) -> bool:
    """Whether a weight stays the same tensor; FSDP's are shards, which are replaced while a layer computes."""
    return type(weight) is nn.Parameter


def _forward(
    own: Callable[..., torch.Tensor],
    layer: nn.Module,
    base: Callable[[torch.Tensor], torch.Tensor],
    adapters: list[_Adapter],
    kind: torch.dtype,
    x: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """A layer's output, [..., outputs]; PEFT computes it if dtypes have to be converted."""
    if x.dtype is not kind or args or kwargs:
        return own(layer, x, *args, **kwargs)
    result = base(x)
    if result.dtype is not kind:
        return own(layer, x)
    rows, flat = x.reshape(-1, x.shape[-1]), result.view(-1, result.shape[-1])
    for down, up, scale in adapters:
        # With `out` it bypasses the kernels of `models.matmul`, which leave such narrow products to MKL anyway.
        flat.addmm_(torch.mm(rows, down, out=rows.new_empty(len(rows), down.shape[1])), up, alpha=scale)
    return result

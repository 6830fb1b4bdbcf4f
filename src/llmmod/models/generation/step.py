"""One decoding step: the logits of the next token of each slot, with our own forward for models built like Llama.

transformers' forward of a single token calls eleven modules per layer, looks up the attention function, and rotates queries and keys in ten
operations: 9.5 of 35 ms per token in SmolLM2-135M on one thread; the rest is the time of reading the weights. Here the same layers
(`LeanLayers`, or the modules themselves, with adapters, 4 bit etc.) are called directly, and the rest of a layer has a third of the
operations. A layer computes the same, except for the order of additions.

Our forward is used only if the model's classes are known, it has no hooks, and its first step gives the same logits with both. The
arguments of a layer's attention (scale, sliding window) are those of that step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import SiLUActivation

from llmmod.models.generation.layers import LeanLayers
from llmmod.models.generation.slots import AttentionArguments, SlotCache
from llmmod.models.loading.structure import base_model, is_hooked

log = logging.getLogger("llmmod")
_Product = Callable[[torch.Tensor], torch.Tensor]

_KNOWN = ("Llama", "Mistral", "Qwen2", "Qwen3")  # prefixes of transformers' classes whose layers compute the same as `_Layer`
_MOST_DIFFERENCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the logits' norm; a different layer causes about 1
_MOST_DIFFERENCE_ROUNDED = 0.05  # in types of 16 bits
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
        self._own: _OwnForward | None = None
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
        own = _OwnForward(self._base, self._layers, cache.asked)(ids, lengths, cache)
        difference = float((own - logits).norm() / logits.norm())
        same = difference <= _MOST_DIFFERENCE.get(own.dtype, _MOST_DIFFERENCE_ROUNDED)
        _compared[self._base] = list(cache.asked) if same else f"its logits would differ by {difference:.2g}"
        self._decide(_compared[self._base])

    def _decide(self, found: list[AttentionArguments] | str) -> None:
        """Set the forward for later steps; `found` as in `_compared`."""
        if isinstance(found, str):
            self._reason = found
        else:
            self._own = _OwnForward(self._base, self._layers, found)
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


class _OwnForward:
    """A model's forward for one new token a slot.

    Args:
        base: a PreTrainedModel that `_why_not` accepts.
        layers: the functions of its layers.
        asked: the arguments of each layer's attention.
    """

    def __init__(self, base: Any, layers: LeanLayers, asked: list[AttentionArguments]) -> None:
        inner = base.model
        self._embed, self._positions = inner.embed_tokens, inner.rotary_emb
        used = inner.layers[: base.config.num_hidden_layers]
        self._layers = [_layer(layer, layers, *pair) for layer, pair in zip(used, enumerate(asked), strict=True)]
        self._norm, self._head = layers.of(inner.norm), layers.of(base.lm_head)

    def __call__(self, ids: torch.Tensor, lengths: torch.Tensor, cache: SlotCache) -> torch.Tensor:
        """Logits, [slots, vocabulary]."""
        x = self._embed(ids)  # [slots, channels]
        cos, sin = self._positions(x[:, None], position_ids=lengths[:, None])  # [slots, 1, channels of a head]
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)  # with these signs, channels rolled by half don't need a minus
        for layer in self._layers:
            x = layer(x, cos, sin, half, cache)
        logits: torch.Tensor = self._head(self._norm(x))
        return logits


class _Layer(NamedTuple):
    """A layer like Llama's: attention and a gated linear unit, each after a norm and added to its input."""

    number: int
    asked: AttentionArguments
    channels: int  # of a head
    norm: _Product
    query: _Product
    key: _Product
    value: _Product
    query_norm: _Product | None  # of each head
    key_norm: _Product | None
    output: _Product
    mlp_norm: _Product
    gate: _Product
    up: _Product
    down: _Product
    activation: _Product

    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, half: int, cache: SlotCache) -> torch.Tensor:
        """The layer's output, [slots, channels]."""
        heads = (len(x), -1, self.channels)
        normed = self.norm(x)
        query, key, value = self.query(normed).view(heads), self.key(normed).view(heads), self.value(normed).view(heads)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query = torch.addcmul(query * cos, query.roll(half, -1), sin)
        key = torch.addcmul(key * cos, key.roll(half, -1), sin)
        x = x + self.output(cache.attend(self.number, query, key, value, self.asked).flatten(1))
        normed = self.mlp_norm(x)
        return x + self.down(self.activation(self.gate(normed)) * self.up(normed))


def _layer(layer: Any, layers: LeanLayers, number: int, asked: AttentionArguments) -> _Layer:
    """A `_Layer` from transformers' layer."""
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        number,
        asked,
        attention.head_dim,
        norm=layers.of(layer.input_layernorm),
        query=layers.of(attention.q_proj),
        key=layers.of(attention.k_proj),
        value=layers.of(attention.v_proj),
        query_norm=layers.of(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=layers.of(attention.k_norm) if hasattr(attention, "k_norm") else None,
        output=layers.of(attention.o_proj),
        mlp_norm=layers.of(layer.post_attention_layernorm),
        gate=layers.of(mlp.gate_proj),
        up=layers.of(mlp.up_proj),
        down=layers.of(mlp.down_proj),
        activation=functional.silu if type(mlp.act_fn) is SiLUActivation else mlp.act_fn,
    )

"""One decoding step: the logits of the next token of each slot, by a forward of our own for models that are built as Llama is.

transformers' forward of a single token calls eleven modules a layer, looks up which attention computes, and rotates queries and keys in
ten operations: 9.5 of 35 ms a token in SmolLM2-135M on one thread, the rest is the time in which the weights are read. Here the same
layers (`LeanLayers`, or the modules themselves: adapters, 4 bit and all) are called in a row, and the rest of a layer takes a third of the
operations. What a layer computes stays what it is but for the order of additions.

A model is taken by its own forward unless its classes are known, nothing is hooked into it, and its first step gives the same logits
either way. How a layer attends (scale, sliding window) is what its attention asked for in that step.
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

_KNOWN = ("Llama", "Mistral", "Qwen2", "Qwen3")  # transformers' classes begin with it; their layers compute what `_Layer` does
_MOST_DIFFERENCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the logits' norm; another layer makes some 1
_MOST_DIFFERENCE_ROUNDED = 0.05  # in types of 16 bits
# What each layer's attention asked for, of models whose first step was the same either way; else how it differs.
_compared: WeakKeyDictionary[nn.Module, list[AttentionArguments] | str] = WeakKeyDictionary()


class Step:
    """Computes steps by a model; see the module.

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
            cache: what these were; made ready by `advance`.
        """
        if self._own is not None:
            return self._own(ids, lengths, cache)
        logits = self._by_model(ids, lengths, cache)
        if self._reason is None:
            self._compare(logits, ids, lengths, cache)
            if self._own is None:
                self._by_model(ids, lengths, cache)  # keys and values are those of the last forward
        return logits

    def _by_model(self, ids: torch.Tensor, lengths: torch.Tensor, cache: SlotCache) -> torch.Tensor:
        """The same by the model's own forward."""
        with cache.attending(self._model.config), self._layers.used():
            found = self._model(input_ids=ids[:, None], position_ids=lengths[:, None], past_key_values=cache, use_cache=True)
        return found.logits[:, -1]  # type: ignore[no-any-return]

    def _compare(self, logits: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, cache: SlotCache) -> None:
        """Compute a step once more by the forward of our own, and take this from now on if it is the same."""
        own = _OwnForward(self._base, self._layers, cache.asked)(ids, lengths, cache)
        difference = float((own - logits).norm() / logits.norm())
        same = difference <= _MOST_DIFFERENCE.get(own.dtype, _MOST_DIFFERENCE_ROUNDED)
        _compared[self._base] = list(cache.asked) if same else f"its logits would differ by {difference:.2g}"
        self._decide(_compared[self._base])

    def _decide(self, found: list[AttentionArguments] | str) -> None:
        """Which forward computes from now on; `found` as in `_compared`."""
        if isinstance(found, str):
            self._reason = found
        else:
            self._own = _OwnForward(self._base, self._layers, found)
        self._say()

    def _say(self) -> None:
        # For whoever asks for it: at the first token, a chat's answer is under way on the terminal.
        log.debug("%s decodes by %s", type(self._base).__name__, f"its own forward: {self._reason}" if self._reason else "llmmod's")


def _why_not(model: Any) -> str | None:
    """Why the forward of our own isn't tried; None where it is."""
    base = base_model(model)
    family = type(base).__name__.removesuffix("ForCausalLM")
    inner: Any = getattr(base, "model", None)
    if family not in _KNOWN or not type(base).__module__.startswith("transformers.models.") or not hasattr(inner, "layers"):
        return "its layers are not built as Llama's"
    parts = [(inner, "Model")]
    for layer in inner.layers:
        parts += [(layer, "DecoderLayer"), (layer.self_attn, "Attention"), (layer.mlp, "MLP")]
    # Whatever replaced one of them, or takes part in its call.
    other = next((part for part, name in parts if type(part).__name__ != family + name or is_hooked(part)), None)
    other = model if is_hooked(model) else base if is_hooked(base) else other
    return None if other is None else f"something takes part in what {type(other).__name__} computes"


class _OwnForward:
    """A model's forward for one new token a slot.

    Args:
        base: a PreTrainedModel that `_why_not` has nothing against.
        layers: what its layers compute.
        asked: of each layer.
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
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)  # rolled by half, channels need no minus of their own
        for layer in self._layers:
            x = layer(x, cos, sin, half, cache)
        logits: torch.Tensor = self._head(self._norm(x))
        return logits


class _Layer(NamedTuple):
    """A layer of Llama's: attention and a gated linear unit, each behind a norm and added to what came in."""

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
        """What comes out, [slots, channels], of what came in."""
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
    """A layer, from transformers' own."""
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

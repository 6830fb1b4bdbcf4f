"""A cache of keys and values in slots, one completion in each, and our own forward of one new token per slot.

Unlike transformers' DynamicCache it is allocated once and written in place; its rows have different lengths without padding, and the next
prompt replaces a finished row. Prompts are read in one row without padding, with segments (`attention.varlen`), and their keys and values
are then copied into the slots.

The forward is for models built like Llama; `step` decides whether it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import SiLUActivation
from transformers.cache_utils import Cache

from llmmod.upstream import require_upstream

require_upstream(__name__)

NAME = "llmmod_slots"
_Product = Callable[[torch.Tensor], torch.Tensor]
_Fast = Callable[[Any], _Product]


class AttentionArguments(NamedTuple):
    """The arguments of a layer's attention.

    Args:
        scale: of the scores; None: one over the square root of the channels.
        window: tokens that a token attends to, with itself; None: all earlier ones.
    """

    scale: float | None
    window: int | None


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of several sequences, [slots, key heads, capacity, channels] per layer; a model's `past_key_values`.

    Args:
        slots: number of sequences.
        capacity: initial number of tokens of each; it grows as needed.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.slots, self.capacity = slots, capacity
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        self._prefill: list[Prefilled] | None = None
        self._places = self._rows = torch.empty(0, dtype=torch.int64)
        self._longest = 0
        self._masks: dict[tuple[torch.device, torch.dtype, int | None], torch.Tensor] = {}
        self.asked: list[AttentionArguments] = []  # of each layer in the last step of `attending`

    # The interface of transformers' caches

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Store a layer's new keys and values; returns those that its attention uses: the prompts' own, or each slot's so far."""
        if torch.is_autocast_enabled(key_states.device.type):  # otherwise attention would cast all of them at every step
            kind = torch.get_autocast_dtype(key_states.device.type)
            key_states, value_states = key_states.to(kind), value_states.to(kind)
        if layer_idx not in self._keys:
            # Zeros, since a masked place has the weight 0, and 0 times NaN is NaN.
            for kept, new in ((self._keys, key_states), (self._values, value_states)):
                kept[layer_idx] = new.new_zeros(self.slots, new.shape[1], self.capacity, new.shape[3])
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._prefill is not None:
            for prompt in self._prefill:
                prompt.copy_to_slots(keys, key_states)
                prompt.copy_to_slots(values, value_states)
            return key_states, value_states
        count = len(self._places)
        if count == 1:
            keys[0, :, self._longest - 1], values[0, :, self._longest - 1] = key_states[0, :, 0], value_states[0, :, 0]
            return keys[:1, :, : self._longest], values[:1, :, : self._longest]
        rows, places = self._rows.to(keys.device), self._places.to(keys.device)
        keys[rows, :, places] = key_states[:, :, 0]
        values[rows, :, places] = value_states[:, :, 0]
        return keys[:count, :, : self._longest], values[:count, :, : self._longest]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: models don't need it, since they get positions."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """The query's length: the attention functions used with this cache create their own masks."""
        return query_length, 0

    # The interface for the decoder

    @contextmanager
    def prefilling(self, prompts: list[Prefilled]) -> Iterator[None]:
        """A context in which the model computes the keys and values of these prompts."""
        self._prefill = prompts
        try:
            yield
        finally:
            self._prefill = None

    def advance(self, lengths: torch.Tensor, longest: int) -> None:
        """Make room for one new token per slot, which `attend` and `attending` then store.

        Args:
            lengths: tokens in each slot before the new one, int64 [active slots].
            longest: the largest of them.
        """
        self._reserve(longest + 1)
        self._places, self._longest = lengths, longest + 1
        self._rows = torch.arange(len(lengths), device=lengths.device)
        self._masks.clear()

    @contextmanager
    def attending(self, config: Any) -> Iterator[None]:
        """A context in which a model with one token per slot as input attends to all tokens of the slot, with the new one.

        Args:
            config: the model's.
        """
        self.asked.clear()
        AttentionInterface.register(NAME, self._attention)
        AttentionMaskInterface.register(NAME, _no_mask)
        own = config._attn_implementation
        config._attn_implementation = NAME
        try:
            yield
        finally:
            config._attn_implementation = own

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, asked: AttentionArguments) -> torch.Tensor:
        """Store a layer's new keys and values, [slots, key heads, channels], and compute its attention, [slots, heads, channels]."""
        keys, values = self.update(key[:, :, None], value[:, :, None], layer)
        return self._attended(query, keys, values, asked)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one slot's first tokens into another slot."""
        for kept in (*self._keys.values(), *self._values.values()):
            kept[target, :, :length] = kept[source, :, :length]

    def _reserve(self, capacity: int) -> None:
        if capacity <= self.capacity:
            return
        self.capacity = max(capacity, self.capacity + self.capacity // 2)
        for kept in (self._keys, self._values):
            for layer, old in kept.items():
                kept[layer] = old.new_zeros(old.shape[0], old.shape[1], self.capacity, old.shape[3])
                kept[layer][:, :, : old.shape[2]] = old

    def _attention(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,  # [slots, heads, 1, channels]
        key: torch.Tensor,  # [slots, key heads, longest, channels]
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention of one new token per slot, [slots, 1, heads, channels]."""
        if kwargs.get("softcap") is not None or kwargs.get("position_bias") is not None or kwargs.get("s_aux") is not None:
            raise ValueError(f"{type(module).__name__} needs attention that the decoder doesn't support")
        self.asked.append(AttentionArguments(scaling, sliding_window))
        return self._attended(query[:, :, 0], key, value, self.asked[-1])[:, None], None

    def _attended(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, asked: AttentionArguments) -> torch.Tensor:
        """Attention of one new token per slot, [slots, heads, channels]; heads that share a key are its queries."""
        count, heads, channels = query.shape
        shared = keys.shape[1]
        packed = query.reshape(count, shared, heads // shared, channels)
        mask = None if count == 1 and asked.window is None else self._mask(query, asked.window)
        found = functional.scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=asked.scale)
        return found.reshape(count, heads, values.shape[-1])

    def _mask(self, query: torch.Tensor, window: int | None) -> torch.Tensor:
        """0 where a slot's new token attends, else minus infinity, [slots, 1, 1, longest] in the query's dtype; made once per step."""
        device, dtype = query.device, query.dtype
        if (device, dtype, window) not in self._masks:
            places = torch.arange(self._longest, device=device)
            last = self._places.to(device)[:, None]
            hidden = places > last
            if window is not None:
                hidden |= places <= last - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
            self._masks[device, dtype, window] = mask[:, None, None]
        return self._masks[device, dtype, window]


class Prefilled:
    """A prompt in the computed row, and its slots.

    Args:
        start, length: of its own tokens in the row.
        shared: number of earlier tokens, which are the first of another prompt.
        trunk: start of that other prompt in the row.
        slots: that get it.
    """

    def __init__(self, start: int, length: int, *, shared: int, trunk: int, slots: Sequence[int]) -> None:
        self.start, self.length, self.shared, self.trunk, self.slots = start, length, shared, trunk, slots

    def copy_to_slots(self, kept: torch.Tensor, row: torch.Tensor) -> None:
        """Copy its keys or values from the row, [1, heads, row, channels], into its slots."""
        for slot in self.slots:
            if self.shared:
                kept[slot, :, : self.shared] = row[0, :, self.trunk : self.trunk + self.shared]
            kept[slot, :, self.shared : self.shared + self.length] = row[0, :, self.start : self.start + self.length]


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """No mask: the attention functions create their own."""


class OwnForward:
    """A model's forward for one new token a slot.

    Args:
        base: a PreTrainedModel built like Llama.
        fast: the fast function of a layer, or the layer itself.
        asked: the arguments of each layer's attention.
    """

    def __init__(self, base: Any, fast: _Fast, asked: list[AttentionArguments]) -> None:
        inner = base.model
        self._embed, self._positions = inner.embed_tokens, inner.rotary_emb
        used = inner.layers[: base.config.num_hidden_layers]
        self._layers = [_layer(layer, fast, *pair) for layer, pair in zip(used, enumerate(asked), strict=True)]
        self._norm, self._head = fast(inner.norm), fast(base.lm_head)

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


def _layer(layer: Any, fast: _Fast, number: int, asked: AttentionArguments) -> _Layer:
    """A `_Layer` from transformers' layer."""
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        number,
        asked,
        attention.head_dim,
        norm=fast(layer.input_layernorm),
        query=fast(attention.q_proj),
        key=fast(attention.k_proj),
        value=fast(attention.v_proj),
        query_norm=fast(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=fast(attention.k_norm) if hasattr(attention, "k_norm") else None,
        output=fast(attention.o_proj),
        mlp_norm=fast(layer.post_attention_layernorm),
        gate=fast(mlp.gate_proj),
        up=fast(mlp.up_proj),
        down=fast(mlp.down_proj),
        activation=functional.silu if type(mlp.act_fn) is SiLUActivation else mlp.act_fn,
    )

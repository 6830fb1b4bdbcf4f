"""A layout of 2023: how to recognise it, and its configuration and weights with the names of today's class.

A family is data: a table in `layouts`. Other code doesn't depend on a family's name. Names in a layer are written without the layer's
prefix, so that `self_attn.W_pack` stands for `model.layers.0.self_attn.W_pack` and those of all other layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY

Raw = Mapping[str, Any]  # the checkpoint's config.json

NATIVE_LAYERS = "model.layers"
# Rotary frequencies, which follow from the configuration; some checkpoints have them, but today's classes don't read them.
RECOMPUTED = re.compile(r"(^|\.)rotary(_pos)?_emb\.inv_freq$")

_ANY = {name: (name,) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache")}
_UNTIED: dict[str, tuple[Any, ...]] = {"tie_word_embeddings": (False,)}  # in every family


def _nothing(raw: Raw) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """A layout of checkpoints.

    Args:
        name: of the models' publisher, for messages.
        model_type: in its config.json.
        native: model_type of the class that computes the same.
        fits: whether a config.json of that model_type has this layout; at most one family may fit.
        required: field of the native configuration -> its names in config.json; the first existing one is used.
        optional: the same, for fields with a default in the native class or in `values`.
        values: fields of the native configuration that are the same for all models of the family.
        computed: config.json -> more computed fields.
        only: name in config.json -> supported values; an absent name is allowed.
        layers: prefix of the checkpoint's layers.
        first_layer: number of the first layer.
        in_layer: name in a layer -> its names in the native layer. For several, its rows are split among them, in this order.
        outside: name outside of the layers -> its native name.
        after_layers: the same for names with the number after the last layer's.
        unit_rows: native names of matrices whose rows the original code normalises at each use.
    """

    name: str
    model_type: str
    native: str
    fits: Callable[[Raw], bool]
    required: Mapping[str, tuple[str, ...]]
    in_layer: Mapping[str, tuple[str, ...]]
    outside: Mapping[str, str]
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    computed: Callable[[Raw], dict[str, Any]] = _nothing
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    layers: str = NATIVE_LAYERS
    first_layer: int = 0
    after_layers: Mapping[str, str] = field(default_factory=dict)
    unit_rows: tuple[str, ...] = ()

    def native_fields(self, raw: Raw) -> dict[str, Any]:
        """The native configuration's fields.

        Raises:
            ConfigError: config.json lacks some, or has values that the mapping doesn't support.
        """
        problems = [
            Problem(PATH_KEY, f"{self.name}: config.json says {name}={raw[name]!r}", f"Supported: {_listed(allowed)}")
            for name, allowed in (_UNTIED | dict(self.only)).items()
            if name in raw and raw[name] not in allowed
        ]
        fields = {"tie_word_embeddings": False, **self.values}
        for native, names in (*_ANY.items(), *self.optional.items(), *self.required.items()):
            found = [raw[name] for name in names if raw.get(name) is not None]
            if found:
                fields[native] = found[0]
            elif native in self.required:
                problems.append(Problem(PATH_KEY, f"{self.name}: config.json doesn't have {' or '.join(names)}"))
        if problems:
            raise ConfigError(problems)
        return fields | self.computed(raw)

    def native_names(self, name: str, *, depth: int) -> tuple[str, ...]:
        """The native names of an original parameter or module, several if it is split; empty if the family doesn't have it.

        Args:
            name: as in a checkpoint, e.g. `transformer.h.0.attn.c_attn.weight`.
            depth: the number of layers.
        """
        outside = _replaced(name, {old: (new,) for old, new in self.outside.items()})
        match = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", name)
        if outside or match is None:
            return outside
        number = int(match[1]) - self.first_layer
        if number == depth:
            return _replaced(match[2], {old: (new,) for old, new in self.after_layers.items()})
        inside = _replaced(match[2], self.in_layer) if 0 <= number < depth else ()
        return tuple(f"{NATIVE_LAYERS}.{number}.{part}" for part in inside)


def _replaced(name: str, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """A name with its beginning replaced by each of the table's names for it."""
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return tuple(part + name[len(old) :] for part in new)
    return ()


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join("null" if value is None else str(value) for value in values)

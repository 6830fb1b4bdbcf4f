"""A layout of 2023: how to recognise it, its configuration and its weights in the names of today's class.

A family is data: one table in a module of its own, and `registry` lists them. Nothing elsewhere asks for a family by its name. Names of
layers are given as they follow the layer's number, so that `self_attn.W_pack` stands for `model.layers.0.self_attn.W_pack` and all others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY

Raw = Mapping[str, Any]  # config.json as it is in the checkpoint

NATIVE_LAYERS = "model.layers"
# Rotary frequencies, which follow from the configuration; some checkpoints have them, no class of today reads them.
RECOMPUTED = re.compile(r"(^|\.)rotary(_pos)?_emb\.inv_freq$")

_ANY = {name: (name,) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache")}
_UNTIED: dict[str, tuple[Any, ...]] = {"tie_word_embeddings": (False,)}  # in every family


def _nothing(raw: Raw) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """A layout of checkpoints.

    Args:
        name: who published models of it, for messages.
        model_type: what its config.json says.
        native: model_type of the class that computes the same.
        fits: whether a config.json of that model_type has this layout; at most one family may say so.
        required: field of the native configuration -> its names in config.json; the first one found counts.
        optional: the same, where the native class's default or `values` may stand in.
        values: fields of the native configuration that are the same for all models of the family.
        computed: config.json -> more fields, worked out.
        only: name in config.json -> values for which the mapping holds; an absent name passes.
        layers: where the checkpoint has its layers, and which number the first of them bears.
        in_layer: name in a layer -> its names in the native layer. Several: its rows are split among them, in this order.
        outside: name outside of the layers -> its native name.
        after_layers: the same for names that stand under the number after the last layer's.
        unit_rows: native names of matrices whose rows the original code normalises each time it uses them.
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
            ConfigError: config.json lacks some, or says what the mapping can't reproduce.
        """
        problems = [
            Problem(PATH_KEY, f"{self.name}: config.json says {name}={raw[name]!r}", f"What can be loaded: {_listed(allowed)}")
            for name, allowed in (_UNTIED | dict(self.only)).items()
            if name in raw and raw[name] not in allowed
        ]
        fields = {"tie_word_embeddings": False, **self.values}
        for native, names in (*_ANY.items(), *self.optional.items(), *self.required.items()):
            found = [raw[name] for name in names if raw.get(name) is not None]
            if found:
                fields[native] = found[0]
            elif native in self.required:
                problems.append(Problem(PATH_KEY, f"{self.name}: config.json has no {' or '.join(names)}"))
        if problems:
            raise ConfigError(problems)
        return fields | self.computed(raw)

    def native_names(self, name: str, *, depth: int) -> tuple[str, ...]:
        """The native names of an original parameter or module, several where it is split; none where the family doesn't have it.

        Args:
            name: as in a checkpoint, e.g. `transformer.h.0.attn.c_attn.weight`.
            depth: how many layers the model has.
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
    """Names with their beginning replaced by what a table has for it."""
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return tuple(part + name[len(old) :] for part in new)
    return ()


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join("null" if value is None else str(value) for value in values)

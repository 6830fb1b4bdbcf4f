"""The types of values that rows carry along for reward functions: of each column one, found in the first rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from llmmod.data.row import RowError, described

_ARROW = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_NAMES = {str: "a text", bool: "a truth value", int: "a whole number", float: "a number"}


def value_types(rows: Iterable[Mapping[str, Any]]) -> dict[str, type]:
    """Column -> str, bool, int or float; what has whole numbers and others is float, what has different kinds is left out."""
    found: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, set()).add(type(value))
    return {name: kind for name, kinds in found.items() if (kind := _common(kinds)) is not None}


def _common(kinds: set[type]) -> type | None:
    if kinds == {int, float}:
        return float
    return next(iter(kinds)) if len(kinds) == 1 and kinds <= set(_ARROW) else None


def arrow_types(types: Mapping[str, type]) -> dict[str, Any]:
    """The same as Arrow's types."""
    return {name: _ARROW[kind] for name, kind in types.items()}


def conform(values: Mapping[str, Any], types: Mapping[str, type]) -> dict[str, Any]:
    """The values of the columns that have a type.

    Raises:
        RowError: a value of another type.
    """
    return {name: _as(value, types[name], name) for name, value in values.items() if name in types}


def _as(value: Any, kind: type, column: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if value is not None and type(value) is not kind:
        raise RowError(f"{described(value)} where the first rows have {_NAMES[kind]}", column=column)
    return value

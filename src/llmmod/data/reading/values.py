"""The types of values that rows carry along for reward functions: of each column one, found in the first rows of all datasets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from llmmod.data.row import RowError, described

_ARROW = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_NAMES = {str: "a text", bool: "a truth value", int: "a whole number", float: "a number"}


def value_kinds(rows: Iterable[Mapping[str, Any]]) -> dict[str, set[type]]:
    """Column -> the types of its values."""
    found: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, set()).add(type(value))
    return found


def value_types(datasets: Sequence[Mapping[str, Collection[type]]]) -> dict[str, type]:
    """Column -> str, bool, int or float, the same for all datasets that have it.

    What has whole numbers and others is float; what has different kinds is left out.

    Args:
        datasets: of each, column -> the types of its values.
    """
    together: dict[str, set[type]] = {}
    for kinds in datasets:
        for name, found in kinds.items():
            together.setdefault(name, set()).update(found)
    return {name: kind for name, kinds in together.items() if (kind := _common(kinds)) is not None}


def disagreed(datasets: Mapping[str, Mapping[str, Collection[type]]], agreed: Collection[str]) -> list[str]:
    """Columns that are left out because their values have different kinds, within a dataset or in several, as a clause each.

    Args:
        datasets: name -> column -> the types of its values.
        agreed: the columns that aren't left out.
    """
    told: dict[str, list[str]] = {}
    for dataset, kinds in datasets.items():
        for name, found in kinds.items():
            if name not in agreed:
                kind = _common(set(found))
                told.setdefault(name, []).append(f"{_NAMES[kind] if kind else 'of different kinds'} in {dataset}")
    return [f"'{name}' is {' and '.join(said)}" for name, said in told.items()]


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

"""How values, types and choices are named in messages."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from typing import Any

from llmmod.errors import did_you_mean, nearest

_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_LISTED = 12  # a longer list of choices is shown by its nearest members alone


def shown(value: Any) -> str:
    """A value as it would be typed: `true`, `null`, `'text'`, `[1, 2]`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Enum):
        return f"'{value.name}'"
    return repr(value)


def expected(hint: Any) -> str:
    """What a field takes, e.g. `a number, or null`."""
    parts = union_members(hint)
    named = [_named(part) for part in parts if part is not type(None)]
    return ", or ".join(dict.fromkeys(named)) + (", or null" if type(None) in parts else "")


def allowed(value: Any, choices: Sequence[str]) -> str:
    """Which choices there are, the nearest first; of a long list the nearest three."""
    text = str(value)
    if len(choices) <= _LISTED:
        close = did_you_mean(text, choices) if nearest(text, choices) else ""
        return f"{close} Allowed: {', '.join(choices)}".strip()
    several = [choice for choice in choices if choice.startswith(text)] or nearest(text, choices, 3)
    return f"Did you mean {_either(several[:3])}?" if several else f"Allowed: {', '.join(choices)}"


def nearest_or_all(name: str, choices: Iterable[str]) -> str:
    """`Did you mean 'x'?`, else the choices where they are few."""
    known = sorted({c for c in choices if not c.startswith("_")})
    if nearest(name, known):
        return did_you_mean(name, known)
    return f"Allowed: {', '.join(known)}" if 0 < len(known) <= 2 * _LISTED else ""


def _either(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def union_members(hint: Any) -> tuple[Any, ...]:
    """The types a hint is a union of, or the hint alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


@cache
def hints(schema: type) -> dict[str, Any]:
    """The fields of a dataclass with their types."""
    return {name: hint for name, hint in typing.get_type_hints(schema).items() if typing.get_origin(hint) is not typing.ClassVar}


def _named(hint: Any) -> str:
    origin = typing.get_origin(hint) or hint
    if origin is list:
        return "a list, written [a,b]"
    if origin is dict or is_dataclass(origin):
        return "keys with values, written {a: 1}"
    if isinstance(origin, type) and issubclass(origin, Enum):
        return f"one of {', '.join(member.name for member in origin)}"
    return _EXPECTED.get(origin, "another value")

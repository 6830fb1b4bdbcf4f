"""Types that OmegaConf can't express: fields typed `Any` whose class takes only some, by the tables beside the schemas."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from llmmod.errors import Problem, did_you_mean
from llmmod.schema.validate.context import Context
from llmmod.schema.validate.signature import parameters
from llmmod.schema.wording import shown

# Of our own fields, by what their node is called.
ACCEPTED: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("dataset", "data_files"): ("str", "list[str]", "dict[str, Any]", "None"),
    ("dataset", "val_files"): ("str", "list[str]", "None"),
    ("dataset", "format"): ("str", "dict[str, Any]"),
    ("model", "device_map"): ("str", "int", "dict[str, Any]", "None"),
    ("model", "lora_targets"): ("str", "list[str]"),
    ("render", "prefix"): ("list[str | dict[str, str]]",),
    ("render", "empty_prefix"): ("list[str | dict[str, str]]", "None"),
    ("render", "prompt"): ("list[str | dict[str, str]]",),
    ("render", "response"): ("list[str | dict[str, str]]",),
    ("render", "sep"): ("list[str | dict[str, str]]",),
}
_PLAIN = {"str": str, "int": int, "float": (int, float), "bool": bool}
_NAMES = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "None": "null", "False": "false"}


def check_types(context: Context) -> Iterator[Problem]:
    """A problem for each value whose type its field doesn't take."""
    for key, label, schema in context.labelled_nodes():
        node = context.get(key)
        own = {name: types for (place, name), types in ACCEPTED.items() if place == label}
        for name, types in (tables(schema, "ACCEPTED") | own).items():
            if isinstance(node, dict) and name in node:
                yield from _check(f"{key}.{name}", node[name], types)


@cache
def tables(schema: type, name: str) -> dict[str, tuple[str, ...]]:
    """field -> what the table `name` says of it, from the modules of a dataclass and its bases."""
    found: dict[str, tuple[str, ...]] = {}
    for base in reversed(schema.__mro__):
        table = getattr(sys.modules.get(base.__module__), name, {})
        found |= {field: table[field] for field in vars(base).get("__annotations__", {}) if field in table}
    return found


def _check(key: str, value: Any, types: tuple[str, ...]) -> Iterator[Problem]:
    if not any(accepts(value, kind) for kind in types):
        names = list(dict.fromkeys(_named(kind) for kind in types))
        yield Problem(key, f"found {shown(value)}", f"Expected {', or '.join(names)}")
        return
    nested = next((kind for kind in types if "." in kind and "[" not in kind), None)
    known = parameters(nested) if nested and isinstance(value, dict) and "dict[str, Any]" not in types else None
    for name in value if known is not None else []:
        if name not in (known or ()):
            yield Problem(f"{key}.{name}", "no such field", did_you_mean(str(name), known or ()))


def accepts(value: Any, kind: str) -> bool:
    """Whether a value has a type given by its name: `str`, `list[int]`, `dict[str, Any]`, `A | B`, or a class's path for a dict."""
    if " | " in kind and kind.count("[") == 0:
        return any(accepts(value, part) for part in kind.split(" | "))
    outer, _, inner = kind.partition("[")
    inner = inner.removesuffix("]")
    if kind in ("None", "False", "Any"):
        return kind == "Any" or value is {"None": None, "False": False}[kind]
    if outer in ("list", "tuple"):
        items = _split(inner) if outer == "tuple" else [inner]
        return isinstance(value, list) and all(any(accepts(item, option) for option in _options(items[0])) for item in value)
    if outer == "dict":
        of_value = _split(inner)[-1]
        return isinstance(value, dict) and all(accepts(item, of_value) for item in value.values())
    if kind in _PLAIN:
        return isinstance(value, _PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool))  # type: ignore[arg-type]
    return isinstance(value, dict)  # a class of the library's, by its fields


def _options(kind: str) -> list[str]:
    return kind.split(" | ") if " | " in kind else [kind]


def _split(text: str) -> list[str]:
    """The parts of `str, list[int]`, brackets respected."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _named(kind: str) -> str:
    outer = kind.partition("[")[0]
    if outer in ("list", "tuple"):
        return "a list, written [a,b]"
    return _NAMES.get(kind, "keys with values, written {a: 1}")

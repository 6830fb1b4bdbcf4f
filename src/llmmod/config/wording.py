"""Words and look-ups that messages share: how values, types and choices are named, and which keys a configuration can have.

A key is a dotted path. Below a dataclass it must be a field; below a free mapping (`model.kwargs`, `steps`) it can be anything.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from llmmod.config.register import schema_class
from llmmod.errors import Problem, did_you_mean, nearest

_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_LISTED = 12  # a longer list of choices is shown by its nearest members alone
PARTS = ("model", "finetune", "training", "dataset", "render")  # what a step may have of its own
_GROUP_OF = {"training": "stage"}  # where a part's group has another name
_SCHEMA_LINE = re.compile(r"^\s*-\s*/(schema/[\w/]+)@_here_", re.MULTILINE)


def shown(value: Any) -> str:
    """A value as it would be typed: `true`, `null`, `'text'`, `[1, 2]`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Enum):
        return f"'{value.name}'"
    return repr(value)


def expected(hint: Any) -> str:
    """The values that a field takes, e.g. `a number, or null`."""
    parts = union_members(hint)
    named = [_named(part) for part in parts if part is not type(None)]
    return ", or ".join(dict.fromkeys(named)) + (", or null" if type(None) in parts else "")


def allowed(value: Any, choices: Sequence[str]) -> str:
    """The choices, the nearest first; of a long list the nearest three."""
    text = str(value)
    if len(choices) <= _LISTED:
        close = did_you_mean(text, choices) if nearest(text, choices) else ""
        return f"{close} Allowed: {', '.join(choices)}".strip()
    several = [choice for choice in choices if choice.startswith(text)] or nearest(text, choices, 3)
    return f"Did you mean {_either(several[:3])}?" if several else f"Allowed: {', '.join(choices)}"


def nearest_or_all(name: str, choices: Iterable[str]) -> str:
    """`Did you mean 'x'?`, else the choices if they are few."""
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


def split_key(key: str) -> list[str]:
    """The components of a key, list positions among them."""
    return [part for part in key.replace("[", ".").replace("]", "").split(".") if part]


def typed_nodes(config: DictConfig) -> dict[str, type]:
    """Key -> dataclass for every node that is backed by one; the root's key is empty."""
    return dict(_typed(config, ""))


def _typed(node: Any, key: str) -> Iterator[tuple[str, type]]:
    if isinstance(node, ListConfig):
        if not node._is_none() and not node._is_missing() and not node._is_interpolation():
            for number, item in enumerate(node._iter_ex(resolve=False)):
                yield from _typed(item, f"{key}.{number}")
        return
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
        return
    schema = OmegaConf.get_type(node)
    if schema is not None and is_dataclass(schema):
        yield key, schema
    for name, item in node.items_ex(resolve=False):
        if isinstance(item, (DictConfig, ListConfig)):
            yield from _typed(item, ".".join(filter(None, [key, str(name)])))


def part_of(key: str) -> tuple[str, str, str]:
    """The part of a configuration that has a key: its group, its node's key, and the rest of the key below it."""
    parts = split_key(key)
    if parts[0] == "steps" and len(parts) > 1:
        depth = 3 if len(parts) > 3 and parts[2] in PARTS else 2
        name = parts[2] if depth == 3 else "step"
    else:
        depth, name = 1, parts[0]
    return _GROUP_OF.get(name, name), ".".join(parts[:depth]), ".".join(parts[depth:])


def no_such_field(key: str, config: DictConfig, choices: Mapping[str, str]) -> Problem:
    """The problem of a key that the configuration doesn't have: the option it belongs to, or the nearest name."""
    nodes = typed_nodes(config)
    plain = OmegaConf.to_container(config, resolve=False)
    group, node, rest = part_of(key)
    chosen = choices.get(f"{group}@{node}", choices.get(group, ""))
    others = [option for option in options_with(group, rest) if option != chosen] if rest else []
    if others and chosen:
        return Problem(key, f"no such field with {group}={chosen}", f"It belongs to {group}={', '.join(others)}")
    parts = split_key(key)
    depth, siblings = _first_missing(parts, plain, nodes)
    name = parts[depth]
    found = "no such field" if depth == len(parts) - 1 else f"{'.'.join(parts[: depth + 1])} does not exist"
    if depth == 0:
        found, siblings = "no such key or group", [*siblings, *groups()]
    elsewhere = [] if nearest(name, siblings) else _elsewhere(parts[-1], nodes)
    hint = f"Did you mean '{elsewhere[0]}'?" if elsewhere else nearest_or_all(name, siblings)
    if depth == len(parts) - 1:
        hint = _in_another_tool(parts[:depth], name) or hint
    free = depth > 0 and ".".join(parts[:depth]) not in nodes and parts[0] != "steps"
    return Problem(key, found, hint, f"To add a new one, write +{key}=…" if free else "")


def _first_missing(parts: list[str], plain: Any, nodes: Mapping[str, type]) -> tuple[int, list[str]]:
    """The component at which a key leaves the tree of possible keys, and the names allowed there."""
    for depth, part in enumerate(parts):
        schema = nodes.get(".".join(parts[:depth]))
        names = list(hints(schema)) if schema is not None else [str(name) for name in plain] if isinstance(plain, dict) else []
        if part not in names or not isinstance(plain, dict) or part not in plain:
            return depth, names
        plain = plain[part]
    return len(parts) - 1, []


def _in_another_tool(place: list[str], name: str) -> str:
    """`Did you mean 'finetune.r'?` for `lora_rank` and other names of other tools; empty if none of them has this name.

    Args:
        place: the components of the key above the name.
        name: the last component.
    """
    part = place[2:] if place[:1] == ["steps"] else place  # of a step's own part, the same keys as at the root
    found = other_tools().get(".".join([*part, name])) or other_tools().get(name, "")
    ours, comma, note = found.partition(", ")
    if not ours or (place and ours.endswith("=")):  # inside a part, an option isn't what was meant
        return ""
    suggested = f"{ours}…" if ours.endswith("=") else ours.removeprefix(".".join([*part, ""]))
    return f"Did you mean '{suggested}'{comma}{note}?"


@cache
def other_tools() -> dict[str, str]:
    """A name in LLaMA-Factory, axolotl or TRL's command line -> our key for the same, and a note after a comma."""
    found: dict[str, str] = yaml.safe_load(Path(__file__).with_name("other_tools.yaml").read_text(encoding="utf-8"))
    return found


def _elsewhere(name: str, nodes: Mapping[str, type]) -> list[str]:
    """Keys of fields with exactly this name, those that are set most often first, and those of `steps` last."""
    found = [f"{key}.{name}" for key, schema in nodes.items() if key and name in hints(schema)]
    return sorted(found, key=lambda key: (key.startswith("steps."), not key.startswith("training."), key.count("."), key))


def options_with(group: str, rest: str) -> list[str]:
    """The shipped options of a group whose schema has the field `rest`."""
    names = split_key(rest)
    if not _is_declared(names[-1]):
        return []
    return [f.stem for f in sorted((conf_directory() / group).glob("*.yaml")) if _has_field(option_schema(f), names)]


def _is_declared(name: str) -> bool:
    """Whether any schema has a field of this name, by the text of their modules: to import all of them takes 0.1 s."""
    field = re.compile(rf"^    {re.escape(name)}: ", re.MULTILINE)
    return any(field.search(file.read_text(encoding="utf-8")) for file in (Path(__file__).parent / "schema").rglob("*.py"))


def option_schema(file: Path) -> type | None:
    """The dataclass that an option's file starts from, or None."""
    line = _SCHEMA_LINE.search(file.read_text(encoding="utf-8"))
    return schema_class(line[1]) if line is not None else None


def _has_field(schema: Any, parts: list[str]) -> bool:
    """Whether a dataclass has a field at a path of names; false below a free mapping, where it is unknown."""
    for part in parts:
        schema = next((member for member in union_members(schema) if is_dataclass(member)), None)
        if schema is None or part not in hints(schema):  # type: ignore[arg-type]
            return False
        schema = hints(schema)[part]  # type: ignore[index,arg-type]
    return True


@cache
def conf_directory() -> Path:
    """Where the shipped options are."""
    spec = find_spec("llmmod.conf")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def groups() -> list[str]:
    """The names of the shipped groups, without those of Hydra's own."""
    found = (entry.name for entry in conf_directory().iterdir() if entry.is_dir() and not entry.name.startswith(("_", ".")))
    return sorted(name for name in found if name != "hydra")

"""The text of a generated module."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from llmmod.devtools.reflect import Field

_HEAD = '''"""`{target}` ({versions}) as a schema, with that class's own defaults.

Written by `python -m llmmod.devtools.generate`, not by hand. {exact} of {total} fields take just what the class takes, by their
annotation or with `CHOICES`; the rest are looser, and `ACCEPTED` says what the class itself takes.{besides}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any{imports}


@dataclass
class {name}{bases}:
    """Every argument of `{target}`."""

    _target_: str = "{target}"
'''
_CHOICES = "# field -> the strings it allows, each item of a list too; a part in [brackets] stands for any text"
_ACCEPTED = "# field -> the types that the class takes; a dotted path: a dict of that class's fields"
_WIDTH = 140


def module_text(
    *, target: str, versions: str, fields: list[Field], inherited: Iterable[Field] = (), base: tuple[str, str] | None = None
) -> str:
    """The module for the class at `target`: its dataclass, then the tables `CHOICES` and `ACCEPTED`.

    Args:
        target: the class's public path.
        versions: of the libraries that decide the result.
        fields: all that the class can be built with.
        inherited: those of the base, which are written only where the class has them otherwise.
        base: the module in this package, and the name, of the dataclass that this one extends.
    """
    head = _HEAD.format(
        target=target,
        name=target.rpartition(".")[2],
        versions=versions,
        besides=f"\nWhat isn't here is as in `{base[0]}`." if base else "",
        imports=f"\n\nfrom llmmod.schema.generated.{base[0]} import {base[1]}" if base else "",
        bases=f"({base[1]})" if base else "",
        exact=sum(f.translation.exact for f in fields),
        total=len(fields),
    )
    alike = {f.name: f for f in inherited}
    own = [f for f in fields if f != alike.get(f.name)]
    body = "\n".join(line for f in own for line in _field_lines(f))
    choices = _table("CHOICES", {f.name: f.translation.choices for f in own if f.translation.choices}, comment=_CHOICES)
    accepted = _table("ACCEPTED", {f.name: f.translation.accepted for f in own if f.translation.accepted}, comment=_ACCEPTED)
    return f"{head}{body}\n\n\n{choices}\n\n{accepted}\n"


def field_line(field: Field) -> str:
    """The field's own line, e.g. `adam_beta1: float = 0.9`."""
    return f"{field.name}: {field.translation.type} = {_default(field)}"


def _field_lines(field: Field) -> Iterable[str]:
    comment = "    # "
    yield from textwrap.wrap(field.comment, _WIDTH, initial_indent=comment, subsequent_indent=comment, break_on_hyphens=False)
    yield f"    {field_line(field)}"


def _default(field: Field) -> str:
    value: Any = field.default
    if isinstance(value, list | dict):
        return f"field(default_factory={f'lambda: {json.dumps(value)}' if value else type(value).__name__})"
    if isinstance(value, int) and not isinstance(value, bool) and field.translation.type.startswith("float"):
        return repr(float(value))
    return _literal(value)


def _literal(value: Any) -> str:
    """The value in Python; a string in double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _table(name: str, rows: Mapping[str, tuple[str, ...]], *, comment: str) -> str:
    lines = [comment, f"{name}: dict[str, tuple[str, ...]] = {{" + ("" if rows else "}")]
    for key, values in rows.items():
        row = f'    "{key}": ({", ".join(map(_literal, values))}{"," * (len(values) == 1)}),'
        lines += [row] if len(row) <= _WIDTH else [f'    "{key}": (', *_wrapped(values), "    ),"]
    return "\n".join(lines + ["}"] * bool(rows))


def _wrapped(values: tuple[str, ...]) -> list[str]:
    indent = " " * 8
    return textwrap.wrap(
        ", ".join(map(_literal, values)) + ",", _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )

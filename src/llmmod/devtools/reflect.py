"""The fields of a third-party dataclass as the schema writes them: flattened over its bases, with that class's own defaults."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import typing
from dataclasses import dataclass
from typing import Any

from llmmod.devtools.describe import describe
from llmmod.devtools.translate import Translation, translate

# Fields that take more than their class says. The newest checkpoint of a run is `true`, which a string would make the path 'True'.
WIDER: dict[str, Any] = {"resume_from_checkpoint": bool | str | None}


@dataclass(frozen=True)
class Field:
    """A field of the generated dataclass.

    Args:
        name: the class's own.
        translation: its type in the schema.
        default: plain Python: None, a primitive, a list or a dict.
        comment: a sentence on what it means, may be empty.
    """

    name: str
    translation: Translation
    default: Any
    comment: str


def reflect(cls: type) -> list[Field]:
    """The fields that `cls` can be built with, in its order."""
    hints = typing.get_type_hints(cls)
    docstring = "\n".join(inspect.getdoc(base) or "" for base in cls.__mro__ if dataclasses.is_dataclass(base))
    return [_field(f, WIDER.get(f.name, hints[f.name]), docstring) for f in dataclasses.fields(cls) if f.init]


def _field(field: dataclasses.Field[Any], hint: Any, docstring: str) -> Field:
    default = _plain(_default(field))
    translation = translate(hint, default=default, choices=field.metadata.get("choices", ()))
    comment = describe(field.name, help_text=field.metadata.get("help", ""), docstring=docstring)
    return Field(field.name, translation, default, comment)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise TypeError(f"{field.name} has no default: the schema would need one of its own")


def _plain(value: Any) -> Any:
    """The default in plain Python; a configuration object that is as its class makes it becomes the empty dict.

    Raises:
        TypeError: a default that the schema can't hold.
    """
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | dict):
        return value
    if dataclasses.is_dataclass(value) and value == type(value)():  # type: ignore[misc, call-arg]
        return {}
    raise TypeError(f"no plain form for the default {value!r}")

"""The fields of a third-party dataclass as a schema writes them: with its own defaults, a sentence each, and types that OmegaConf knows.

OmegaConf 2.3 takes bool, int, float, str, unions of those, `X | None`, and lists and dicts of them. It has neither `Literal` nor a union
with a container, and matches an enum by member name where transformers goes by value. So a string enum becomes `str`, and its values go to
a table of choices. A type without a counterpart becomes `Any` (a dict for a configuration class), and its own types go to a table of
accepted ones. The validation reads both tables. The sentence is the `help` of the field, or what the class's docstring says of it.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import types
import typing
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENOUGH_WORDS = 4  # a text or sentence shorter than this ("Lora alpha", "Deprecated.") says no more than the name
_ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "vs.", "cf.", "approx.", "Eq.")
_ASCII = str.maketrans("‘’“”–—×≈\xa0", "''\"\"--x~ ") | str.maketrans({"→": "->", "←": "<-", "≥": ">=", "≤": "<=", "…": "..."})
_VAGUE = ("It ", "This setting ")  # a sentence that begins like this doesn't say what the field is
PRIMITIVES = ("bool", "int", "float", "str")  # the order in which a union of them is written
# Fields that take more types than their class declares. `true` is the newest checkpoint of a run; a string would make it the path 'True'.
WIDER: dict[str, Any] = {"resume_from_checkpoint": bool | str | None}


def describe(name: str, *, help_text: str, docstring: str) -> str:
    """The first sentence on the field `name`, in ASCII, without its full stop; empty if there is none."""
    text = help_text if len(help_text.split()) >= ENOUGH_WORDS else _from_docstring(name, docstring) or help_text
    return to_ascii(first_sentence(plain(text)))


def plain(text: str) -> str:
    """The text without links, references, HTML tags and line breaks; argparse's `%%` is a per cent sign."""
    text = re.sub(r"\[`?~?([^\]`]+)`?\]\([^)]*\)", r"\1", text)  # [text](address)
    text = re.sub(r"\[`~?([^`\]]+)`\]", r"`\1`", text)  # [`~transformers.Trainer`]
    text = re.sub(r"</?(?:a|b|i|em|code|br)\b[^>]*>", "", text)  # but not `torch.<device>`
    return " ".join(text.replace("%%", "%").split())


def to_ascii(text: str) -> str:
    """The text in ASCII: Greek letters by name, typographic marks as plain ones.

    Raises:
        ValueError: for a character that has neither.
    """
    return "".join(c if c.isascii() else _ascii_letter(c) for c in text.translate(_ASCII))


def _ascii_letter(char: str) -> str:
    name = unicodedata.name(char, "")
    if name.startswith("GREEK"):
        return name.split()[-1].lower()
    plainer = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
    if not plainer:
        raise ValueError(f"no ASCII for {char!r} ({name}): add it to the table above")
    return plainer


def first_sentence(text: str) -> str:
    """The text up to its first full stop, without it; if it doesn't say what the field is, with the next sentence."""
    for stop in re.finditer(r"\.(?=\s+[^a-z\s]|$)", text):
        sentence = text[: stop.start()]
        says_nothing = len(sentence.split()) < ENOUGH_WORDS or (sentence.startswith(_VAGUE) and ". " not in sentence)
        if not says_nothing and not text[: stop.end()].endswith(_ABBREVIATIONS):
            return sentence
    return text.rstrip(".")


def _from_docstring(name: str, docstring: str) -> str:
    """What the `Args` part of a docstring says of `name`, which is indented below a line `name (type):`."""
    entry = re.search(rf"^(?P<indent>[ ]+){re.escape(name)} \(.*\):\n(?P<text>(?:(?P=indent)[ ]+.*\n|\s*\n)+)", docstring, re.MULTILINE)
    return entry["text"].strip() if entry else ""


@dataclass(frozen=True)
class Translation:
    """A field's type in the schema.

    Args:
        type: as written in the generated module, e.g. `list[str] | None`.
        exact: whether `type` and `choices` together take just what the class itself takes.
        choices: the strings that the field allows; empty if it allows any string or isn't one.
        accepted: the names of the class's own types if `exact` is false.
    """

    type: str
    exact: bool = True
    choices: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Member:
    """One member of a union: its type in the schema, the name of its own type, and whether the two allow the same values."""

    type: str
    name: str
    exact: bool = True
    choices: tuple[str, ...] = ()


def translate(hint: Any, *, default: Any, choices: typing.Iterable[str] = ()) -> Translation:
    """The schema's type for a resolved annotation.

    Args:
        hint: from `typing.get_type_hints`.
        default: the class's default; if it is None, None is allowed even if the annotation doesn't have it.
        choices: those of the field's metadata, if any.
    """
    members = [_member(part) for part in _parts(hint)]
    optional = default is None or any(m.name == "None" for m in members)
    members = [m for m in members if m.name != "None"]
    merged = _merge([m.type for m in members])
    exact = merged is not None and all(m.exact for m in members)
    allowed = tuple(choices) or tuple(c for m in members for c in m.choices)
    schema = "Any" if merged is None else merged
    # Sorted, plain types first, since typing caches equal unions: their members have the order of the first such union in the process.
    names = sorted({m.name for m in members}, key=lambda name: ("[" in name, name))
    accepted = () if exact else (*names, *["None"] * optional)
    return Translation(f"{schema} | None" if optional and schema != "Any" else schema, exact, allowed, accepted)


def _parts(hint: Any) -> list[Any]:
    """The members of a union, of a Literal too, flattened; or the one type."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [leaf for part in typing.get_args(hint) for leaf in _parts(part)]
    return [hint]


def _merge(written: list[str]) -> str | None:
    """One type for all members, or None where OmegaConf has no such union."""
    distinct = list(dict.fromkeys(written))
    if len(distinct) == 1:
        return distinct[0]
    return " | ".join(p for p in PRIMITIVES if p in distinct) if set(distinct) <= set(PRIMITIVES) else None


def _member(part: Any) -> _Member:
    origin, args = typing.get_origin(part), typing.get_args(part)
    if part in (bool, int, float, str):
        return _Member(part.__name__, part.__name__)
    if part is type(None):
        return _Member("None", "None")
    if part is Any:
        return _Member("Any", "Any")
    if part is Path:
        return _Member("str", "str")
    if origin is typing.Literal:
        return _literal(args)
    if isinstance(part, type) and issubclass(part, enum.Enum):
        return _Member("str", "str", choices=tuple(str(member.value) for member in part))
    if part is dict or origin is dict:
        return _mapping(args)
    if part in (list, tuple) or origin in (list, tuple):
        return _sequence(part, args)
    # an object with fields of its own: written as a dict, and built together with the object that it belongs to
    return _Member("dict[str, Any]", f"{part.__module__}.{part.__qualname__}", exact=False)


def _literal(values: tuple[Any, ...]) -> _Member:
    if all(isinstance(v, str) for v in values):
        return _Member("str", "str", choices=values)
    if all(isinstance(v, bool) for v in values):
        return _Member("bool", " | ".join(str(v) for v in values), exact=set(values) == {True, False})
    raise TypeError(f"no translation for Literal{list(values)}")


def _mapping(args: tuple[Any, ...]) -> _Member:
    value = _member(args[1]) if args else _Member("Any", "Any")
    return _Member(f"dict[str, {value.type}]", f"dict[str, {value.name}]", value.exact)


def _sequence(part: Any, args: tuple[Any, ...]) -> _Member:
    items = [_member(a) for a in args if a is not Ellipsis] or [_Member("Any", "Any")]
    item = _merge([i.type for i in items]) or "Any"
    is_list = part is list or typing.get_origin(part) is list
    name = f"{'list' if is_list else 'tuple'}[{', '.join(i.name for i in items)}]"
    return _Member(f"list[{item}]", name, exact=is_list and all(i.exact and not i.choices for i in items))


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
    """The default in plain Python; a configuration object with all defaults becomes an empty dict.

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

"""Every key of the configuration: its type, default, meaning, allowed values, and the stages that read it.

Types and defaults come from the schemas and the options' files, allowed values from the tables that the validation uses, the meaning from
the comment on the field, and the stages that read a key from the rules of `validate.keys`. `key_pages` writes the pages.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import re
import sys
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

import yaml

from llmmod.config.compose import compose_config
from llmmod.config.schema.data import MixedConf
from llmmod.config.step_parts import Context
from llmmod.config.validate.checks import context_of
from llmmod.config.validate.keys import RULES
from llmmod.config.validate.model import FIXED
from llmmod.config.validate.unread_training import always
from llmmod.config.validate.values import ACCEPTED, BOUNDS, CHOICES, formats, tables
from llmmod.config.wording import conf_directory, hints, union_members

STAGES = tuple(sorted(path.stem for path in (conf_directory() / "stage").glob("*.yaml")))
_TARGET = "the class or function that creates this part; name your own to replace it"
# Where the library's own comment says no more than the name.
_WORDS: Mapping[str, str] = {
    "task_type": "the kind of model that the adapter is made for; llmmod trains CAUSAL_LM, and SEQ_CLS in stage=rm",
    "peft_type": "the kind of adapter, which peft sets itself",
    "bias": "which biases are trained too: none, all of them, or those of the modules with an adapter",
    "megatron_config": "the TransformerConfig of a Megatron model, for its own parallel layers",
}
_BELOW: Mapping[tuple[str, str], type] = {("dataset", "mix"): MixedConf}  # free mappings whose values have keys of their own
_SETTINGS = ("only read with", "not read with", "not read, since")  # a rule that begins like this depends on another key's value
_TYPES: Mapping[tuple[str, str], str] = {("step", "finetune"): "dict | null", ("step", "training"): "dict | null"}
_TO_TOOLS = re.compile(r"#? ?(type: ignore(\[[^]]*\])?|fmt: \w+|noqa.*)")  # a comment for a linter



@dataclass(frozen=True)
class Key:
    """One key.

    Args:
        key: as it is typed, e.g. `training.beta`.
        type: as in YAML, e.g. `float | null`.
        defaults: option -> the key's default; the option is empty if the defaults don't come from an option's file.
        meaning: a sentence.
        allowed: the values or the range; empty where the type says it all.
        stages: those that read it.
        notes: when it is not read, and what to do.
        unread: why none of the stages reads it, and what to set instead; empty if one does.
    """

    key: str
    type: str
    defaults: Mapping[str, str]
    meaning: str
    allowed: str
    stages: tuple[str, ...]
    notes: tuple[str, ...]
    unread: str


def keys(schema: type, place: str, *, shown_at: str = "", option: str = "", stage: str = "") -> Iterator[Key]:
    """The keys of a node in the schema's order, with the keys of nested nodes at their place.

    Args:
        schema: the node's dataclass.
        place: the node's name in the tables of the validation: `training`, `model.quantization`, `step`.
        shown_at: the prefix under which its keys are typed; `place` if empty.
        option: `group/name` of the option whose file sets other defaults.
        stage: the stage whose node this is; empty if it is the same in every stage.
    """
    comments, prefix = field_comments(schema), shown_at or place
    of_option = _of_file(option) if option else {}
    for field in dataclasses.fields(schema):
        hint = hints(schema)[field.name]
        below = _BELOW.get((place, field.name))
        if is_dataclass(hint):
            yield from keys(hint, _joined(place, field.name), shown_at=_joined(prefix, field.name))  # type: ignore[arg-type]
            continue
        default = of_option.get(field.name, _default(field))
        stages, notes, unread = read_by(place, field.name, hint, (stage,) if stage else STAGES)
        yield Key(
            key=_joined(prefix, field.name),
            type=_TYPES.get((place, field.name)) or _type(hint, _accepted(schema, place, field.name)),
            defaults={option.rpartition("/")[2]: yaml_text(default)},
            meaning=_sentence(_TARGET if field.name == "_target_" else _WORDS.get(field.name) or comments[field.name]),
            allowed=_allowed(schema, place, field.name, hint),
            stages=stages,
            notes=notes,
            unread=unread,
        )
        if below is not None:
            yield from keys(below, _joined(place, field.name), shown_at=f"{prefix}.{field.name}.<name>")


def read_by(place: str, name: str, hint: Any, stages: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The stages that read a field, notes on when they don't, and why none of them ever does (empty if one does)."""
    readers, notes = set(stages), []
    if place == "finetune" and name in FIXED:
        notes.append(f"Other values are refused: {FIXED[name][1]}.")
    for label, names, unread, why in RULES:
        if label != place or name not in names:
            continue
        text = _sentence(why.replace("|", ". "))
        if unread is always:
            return (), (), text
        holds = {stage: _holds(unread, stage, place, name, hint) for stage in STAGES}
        known = {stage: held for stage, held in holds.items() if held is not None}
        # A rule that holds in every stage with this field does not depend on the stage: other settings decide.
        if not why.startswith(_SETTINGS) and not all(known.values()):
            readers -= {stage for stage, held in known.items() if held}
        notes.append(text)
    return tuple(stage for stage in stages if stage in readers), tuple(dict.fromkeys(notes)), ""


def _holds(unread: Any, stage: str, place: str, name: str, hint: Any) -> bool | None:
    """Whether this rule says that a stage with its option's values doesn't read a field; None if the stage doesn't have the field.

    A boolean field is set to true first.
    """
    context, key = _context(stage), place.replace("step", "steps.predict", 1) if place == "step" else place
    node = context.get(key)
    if not isinstance(node, dict) or name not in node:
        return None
    return bool(unread(context, key, {**node, name: True} if bool in union_members(hint) else node))


@cache
def _context(stage: str) -> Context:
    return context_of(compose_config([f"stage={stage}"]))[0]


@cache
def _of_file(option: str) -> dict[str, Any]:
    """What an option's file sets, without its defaults list."""
    found = yaml.safe_load((conf_directory() / f"{option}.yaml").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name != "defaults"}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def yaml_text(value: Any) -> str:
    """A value as it would be typed in a YAML file, on one line."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {yaml_text(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_text, value))}]"
    if isinstance(value, str):
        return value or '""'
    return repr(value) if isinstance(value, float) else json.dumps(value)


def _accepted(schema: type, place: str, name: str) -> tuple[str, ...]:
    return tables(schema, "ACCEPTED").get(name) or ACCEPTED.get((place, name)) or ACCEPTED.get((place.partition(".")[0], name), ())


def _type(hint: Any, accepted: tuple[str, ...]) -> str:
    """The type in the words of YAML and Python: `float | null`, `list[str]`."""
    if accepted:
        names = [f"fields of {name.rpartition('.')[2]}" if "." in name and "[" not in name else name for name in accepted]
        return " | ".join(dict.fromkeys("null" if name == "None" else name.replace("dict[str, Any]", "dict") for name in names))
    return " | ".join(dict.fromkeys(_type_name(member) for member in union_members(hint)))


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return f"list[{_type(arguments[0], ())}]"
    if origin is dict:
        return "dict" if arguments[1] is Any else f"dict[str, {_type(arguments[1], ())}]"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "str"
    if is_dataclass(hint):
        return f"fields of {hint.__name__}"  # type: ignore[union-attr]
    return "null" if hint is types.NoneType else str(hint.__name__)


def _allowed(schema: type, place: str, name: str, hint: Any) -> str:
    enums = [member for member in union_members(hint) if isinstance(member, type) and issubclass(member, Enum)]
    choices: tuple[Any, ...] = tuple(member.value for member in enums[0]) if enums else tables(schema, "CHOICES").get(name, ())
    choices = choices or CHOICES.get((place, name), ())
    if place == "finetune" and name in FIXED:
        choices = tuple(map(yaml_text, FIXED[name][0]))
    if (place.partition(".")[0], name) == ("dataset", "format"):
        choices = formats()
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    if bool in union_members(hint) and set(union_members(hint)) <= {bool, types.NoneType}:
        return "`true`, `false`"
    bound = BOUNDS.get(place, {}).get(name)
    return bound.text if bound else ""


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _sentence(text: str) -> str:
    """The text with a full stop, and a capital letter unless it begins with a name; None becomes null, as in YAML."""
    text = re.sub(r"\bNone\b", "null", text.strip())
    if re.match(r"(?!llmmod|peft|trl|torch|bos|[a-z0-9]*[_.=])[a-z]", text):
        text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "…", "!")) else f"{text}."


def field_comments(schema: type) -> dict[str, str]:
    """Field -> the text of its comment, for each field of a dataclass and its bases; empty if there is none.

    A field that a class repeats without a comment keeps the base's comment. An enum field without a comment
    gets the enum's docstring.
    """
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        found |= {name: comment for name, comment in _own_comments(base).items() if comment}
    return {name: found.get(name) or _of_enum(hint) for name, hint in hints(schema).items()}


@cache
def _own_comments(schema: type) -> dict[str, str]:
    source = inspect.getsource(sys.modules[schema.__module__])
    comments, alone = _comments(source)
    body = next(node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == schema.__name__)
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            behind = " ".join(comments[line] for line in lines if line in comments)
            above = node.lineno
            while above - 1 in alone:
                above -= 1
            found[node.target.id] = behind or " ".join(comments[line] for line in range(above, node.lineno) if line in comments)
    return found


def _comments(source: str) -> tuple[dict[int, str], set[int]]:
    """Line -> its comment, and the lines that have nothing but a comment."""
    comments: dict[int, str] = {}
    alone = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            text = _TO_TOOLS.sub("", token.string).lstrip("#").strip()
            if text:
                comments[line] = text
            if token.line.lstrip().startswith("#"):
                alone.add(line)
    return comments, alone


def _of_enum(hint: object) -> str:
    """The first paragraph of an enum's docstring; empty for any other type."""
    enums = [member for member in union_members(hint) if isinstance(member, type) and issubclass(member, Enum)]
    return (inspect.getdoc(enums[0]) or "").split("\n\n")[0].replace("\n", " ") if enums else ""

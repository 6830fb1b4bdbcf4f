"""Chooses the format for the rows, and the columns that it reads.

Each module in `data/formats/` is a format, found by its name. It has `KIND` (of its records: conversation, document, preference, judgement
or prompt), `ROLES` (the keys of `dataset.columns` that it reads), `REQUIRED` (the roles that it needs), `USUAL` (usual names of a role's
column), `find_columns`, `recognises` and `read`. A user's own function of a row is a format too.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from llmmod.data import formats
from llmmod.data.formats import kto, preference, prompt, text
from llmmod.data.rows.columns import as_conversation
from llmmod.data.rows.records import PromptRecord, Record, Row, RowError, described, listed, quoted
from llmmod.data.rows.turns import OPENAI, read_turns
from llmmod.errors import ConfigError, Problem, did_you_mean
from llmmod.instantiate import build
from llmmod.render.conversation import Conversation


@dataclass(frozen=True)
class Format:
    """A way to read rows.

    Args:
        name: as in `dataset.format`, with `auto` replaced by the choice.
        read: row -> record; raises `RowError`.
        columns: role -> column.
        found: whether `auto` chose it.
        unread: columns of the first rows that are not read.
    """

    name: str
    read: Callable[[Row], Any]
    columns: Mapping[str, str]
    found: bool = False
    unread: Sequence[str] = ()

    def __str__(self) -> str:
        columns = ", ".join(f"{role}={column}" for role, column in self.columns.items())
        return f"{self.name}{' (found by the columns)' if self.found else ''}{': ' if columns else ''}{columns}"


# For each kind besides a conversation, a function may return an object with these columns, which this format reads.
_READERS: Mapping[str, tuple[Any, str]] = {
    "preference": (preference, "an object with prompt, chosen and rejected"),
    "judgement": (kto, "an object with prompt, completion and label"),
    "prompt": (prompt, "an object with prompt, and optionally answer"),
}


def choose_format(asked: Any, *, kind: str, given: Mapping[str, str], head: Sequence[Row], file: str) -> Format:
    """The format that `dataset.format` names, with the columns it reads.

    Args:
        asked: a name, `auto`, a function, or a mapping with the `_target_` of a function.
        kind: of the records that the stage needs, e.g. `conversation`.
        given: role -> column, as the user set `dataset.columns`.
        head: the first rows, which have the existing columns.
        file: of the rows, for the message.

    Raises:
        ConfigError: the format is unknown or of another kind, columns don't exist, or the rows don't fit a format.
    """
    if callable(asked) or isinstance(asked, Mapping):
        return _own_format(asked, kind=kind)
    available = list(dict.fromkeys(column for row in head for column in row))
    names = [module.name for module in pkgutil.iter_modules(formats.__path__)]
    if asked != "auto" and asked not in names:
        allowed = did_you_mean(str(asked), ["auto", *names])
        do = "For your own function, write {_target_: my.function}"
        raise ConfigError(Problem("dataset.format", f"'{asked}' is not a format", allowed, do))
    _check_given(given, asked if asked != "auto" else None, available, file)
    if asked == "auto":
        return _recognised(names, kind=kind, given=given, available=available, head=head, file=file)
    module = _module(asked)
    if kind != module.KIND:
        of_kind = ", ".join(name for name in names if kind == _module(name).KIND)
        found = f"the records of '{asked}' are of kind {module.KIND}, not {kind}"
        raise ConfigError(Problem("dataset.format", found, f"Allowed: auto, {of_kind}"))
    columns = module.find_columns(available, given)
    if columns is None:
        found = f"the format {asked} needs {_needs(module)}; the columns of {file} are {listed(available) or 'none'}"
        do = f"Name the data's columns, e.g. dataset.columns.{module.REQUIRED[0]}=…"
        raise ConfigError(Problem("dataset.columns", found, do=do))
    return Format(asked, partial(module.read, columns=columns), columns, unread=_unread(available, columns, kind, head))


def _own_format(asked: Any, *, kind: str) -> Format:
    """The format of a user's own function, or of a mapping with its `_target_`."""
    function = asked if callable(asked) else build({**asked, "_partial_": True})
    name = str(asked["_target_"] if isinstance(asked, Mapping) else getattr(asked, "__qualname__", type(asked).__name__))
    return Format(name, partial(_read, function=function, name=name, kind=kind), {})


def _read(row: Row, *, function: Callable[[Row], Any], name: str, kind: str) -> Record:
    try:
        made = function(row)
    except RowError:
        raise
    except Exception as error:  # every error of the user's function is an error of this row
        raise RowError(f"{name} failed on it: {type(error).__name__}: {error}") from error
    record, expected = _as_record(made, kind)
    if record is None:
        raise RowError(f"{name} returned {described(made)} where {expected} is expected")
    return record


def _as_record(made: Any, kind: str) -> tuple[Record | None, str]:
    """A function's result as a record of the kind, None if it is another value; and the expected type as text."""
    if kind == "document":
        return (text.read({"text": made}, {"text": "text"}) if isinstance(made, str) else None), "a text"
    if kind in _READERS:
        reader, expected = _READERS[kind]
        if isinstance(made, PromptRecord):
            return made, expected
        columns = reader.find_columns(list(made), {}) if isinstance(made, Mapping) else None
        return (reader.read(made, columns) if columns else None), expected
    expected = "a Conversation or a list of {role, content}"
    if isinstance(made, Conversation):
        return as_conversation(made.messages), expected
    return (as_conversation(read_turns(made, None, OPENAI)) if isinstance(made, list) else None), expected


def _recognised(
    names: Sequence[str], *, kind: str, given: Mapping[str, str], available: Collection[str], head: Sequence[Row], file: str
) -> Format:
    candidates = {name: _module(name) for name in names}
    found = {name: module.find_columns(available, given) for name, module in candidates.items() if set(given) <= set(module.ROLES)}
    fitting = {name: columns for name, columns in found.items() if columns and candidates[name].recognises(head, columns)}
    right = {name: columns for name, columns in fitting.items() if kind == candidates[name].KIND}
    if len(right) == 1:
        ((name, columns),) = right.items()
        unread = _unread(available, columns, kind, head)
        return Format(name, partial(candidates[name].read, columns=columns), columns, found=True, unread=unread)
    columns_there = f"the columns of {file} are {listed(available) or 'none'}"
    if right:
        fits = f"{' and '.join(right)} fit"
        raise ConfigError(Problem("dataset.format", f"'auto' can't decide: {columns_there}", fits, "Set the one you mean"))
    others = "".join(f", which fits the format {name}, a {candidates[name].KIND} a row" for name in fitting)
    of_kind = {name: module for name, module in candidates.items() if kind == module.KIND}
    needs = "; ".join(f"{name} needs {_needs(module)}" for name, module in of_kind.items())
    first, module = next(iter(of_kind.items()))
    columns = " ".join(f"dataset.columns.{role}=…" for role in module.REQUIRED)
    do = f"Name the data's columns, e.g. dataset.format={first} {columns}"
    raise ConfigError(Problem("dataset.format", f"'auto' can't find a {kind} in the rows: {columns_there}{others}", needs, do))


def _unread(available: Collection[str], columns: Mapping[str, str], kind: str, head: Sequence[Row]) -> list[str]:
    """The columns that are not read; for prompts, reward functions get the columns of texts or numbers."""
    left = [name for name in available if name not in columns.values()]
    if kind != "prompt":
        return left
    return [name for name in left if not any(isinstance(row.get(name), str | int | float) for row in head)]


def _check_given(given: Mapping[str, str], asked: str | None, available: Collection[str], file: str) -> None:
    """Refuse columns that don't exist, or that the format doesn't read; all of them at once."""
    problems = []
    for role, column in given.items():
        if asked is not None and role not in _module(asked).ROLES:
            roles = ", ".join(_module(asked).ROLES)
            problems.append(Problem(f"dataset.columns.{role}", f"the format {asked} doesn't read this column", f"It reads {roles}"))
        elif column not in available:
            columns = f"Its columns: {listed(available) or 'none'}"
            problems.append(Problem(f"dataset.columns.{role}", f"{quoted(column)} is not a column of {file}", columns))
    if problems:
        raise ConfigError(problems)


def _needs(module: Any) -> str:
    return " and ".join(f"a column for '{role}' (usually {' or '.join(module.USUAL[role][:2])})" for role in module.REQUIRED)


def _module(name: str) -> Any:
    return import_module(f"{formats.__name__}.{name}")

"""A way to read rows, and one made of a user's own function of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmmod.data.formats import kto, preference, prompt, text
from llmmod.data.formats.messages import KEYS, TURNS
from llmmod.data.reading.turns import as_conversation, read_turns
from llmmod.data.records import Prompted, Record
from llmmod.data.row import Row, RowError, described
from llmmod.instantiate import build
from llmmod.render.conversation import Conversation


@dataclass(frozen=True)
class Format:
    """A way to read rows.

    Args:
        name: as in `dataset.format`, `auto` replaced by what was decided.
        read: a row -> what the format makes of it; raises `RowError`.
        columns: role -> column.
        found: whether `auto` decided.
        unread: columns of the first rows that nothing reads.
    """

    name: str
    read: Callable[[Row], Any]
    columns: Mapping[str, str]
    found: bool = False
    unread: Sequence[str] = ()

    def __str__(self) -> str:
        columns = ", ".join(f"{role}={column}" for role, column in self.columns.items())
        return f"{self.name}{' (found by the columns)' if self.found else ''}{': ' if columns else ''}{columns}"


# What a function may make of a row for each kind besides a conversation: an object with these columns, which this format reads.
_READERS: Mapping[str, tuple[Any, str]] = {
    "preference": (preference, "an object with prompt, chosen and rejected"),
    "judgement": (kto, "an object with prompt, completion and label"),
    "prompt": (prompt, "an object with prompt, and answer or not"),
}


def own_format(asked: Any, *, kind: str = "conversation") -> Format:
    """The format that a function of the user's own is.

    Args:
        asked: the function, or a mapping with its `_target_`.
        kind: what it makes of a row.
    """
    function = asked if callable(asked) else build({**asked, "_partial_": True})
    name = str(asked["_target_"] if isinstance(asked, Mapping) else getattr(asked, "__qualname__", type(asked).__name__))
    return Format(name, partial(_read, function=function, name=name, kind=kind), {})


def _read(row: Row, *, function: Callable[[Row], Any], name: str, kind: str) -> Record:
    try:
        made = function(row)
    except RowError:
        raise
    except Exception as error:  # whatever the user's function raises says something about this row
        raise RowError(f"{name} failed on it: {type(error).__name__}: {error}") from error
    record, expected = _as_record(made, kind)
    if record is None:
        raise RowError(f"{name} made {described(made)} of it where {expected} is expected")
    return record


def _as_record(made: Any, kind: str) -> tuple[Record | None, str]:
    """What a function made as a record of the kind, None where it is none; and what is expected."""
    if kind == "document":
        return (text.read({"text": made}, {"text": "text"}) if isinstance(made, str) else None), "a text"
    if kind in _READERS:
        reader, expected = _READERS[kind]
        if isinstance(made, Prompted):
            return made, expected
        columns = reader.find_columns(list(made), {}) if isinstance(made, Mapping) else None
        return (reader.read(made, columns) if columns else None), expected
    expected = "a Conversation or a list of {role, content}"
    if isinstance(made, Conversation):
        return as_conversation(made.messages), expected
    return (as_conversation(read_turns(made, None, keys=KEYS, roles=TURNS)) if isinstance(made, list) else None), expected

"""A row of data: its values, its errors, and its record.

A format reads one row without knowing its file or number: it raises `RowError`, and the reader of the file adds the location. A record is a
conversation, a document (a text), or a prompt with answers that are compared, judged, or still to be generated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from llmmod.errors import DataError, Problem
from llmmod.render.conversation import Conversation, Message

Row = Mapping[str, Any]

_UNSEEN = {
    " ": "a space", "\t": "a tab", "\n": "a line break", "\r": "a carriage return", "\u00a0": "a no-break space",
    "\ufeff": "a byte order mark", "\u200b": "a zero-width space", "\u3000": "an ideographic space",
}  # fmt: skip


class RowLocation(NamedTuple):
    """The location of a row: the file as shown in messages, and the row's number in it, from 1 on.

    The number counts rows, without the header of a CSV file. If a row is a line (jsonl, txt), it is the line's number.
    """

    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.number}"


class RowError(Exception):
    """A row that can't be read.

    Args:
        found: what was found, as a clause.
        column: the column it was found in; None for the whole row.
        do: what to do about it.
    """

    def __init__(self, found: str, *, column: str | None = None, do: str = "") -> None:
        self.found, self.column, self.do = found, column, do
        super().__init__(found)

    def at(self, place: RowLocation) -> DataError:
        """The error for the user, with file, row number and column."""
        where = f"{place}, column {quoted(self.column)}" if self.column else str(place)
        return DataError(Problem(where, self.found, do=self.do))


def present(row: Row, column: str) -> Any:
    """The value in a column.

    Raises:
        RowError: the row lacks the column.
    """
    if column not in row:
        raise RowError(f"missing; the row has {listed(row) or 'no columns'}", column=column)
    return row[column]


def listed(columns: Iterable[Any]) -> str:
    """The names of columns for a message, with their invisible characters named."""
    return ", ".join(quoted(str(name)) if _unseen(str(name)) else str(name) for name in columns)


def quoted(name: str) -> str:
    """A column's name in quotes, with its invisible characters named: `'answer ' (with a space at the end)`."""
    shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in name)
    unseen = _unseen(name)
    return f"'{shown}' (with {' and '.join(unseen)})" if unseen else f"'{shown}'"


def _unseen(name: str) -> list[str]:
    """The invisible characters of a name: white space at its ends, and characters without a shape."""
    ends = [("the beginning", name[:1]), ("the end", name[-1:])][: len(name)]
    spaces = [f"{_UNSEEN.get(char, f'U+{ord(char):04X}')} at {place}" for place, char in ends if char in _UNSEEN or not char.isprintable()]
    within = [_UNSEEN.get(char, f"U+{ord(char):04X}") for char in name[1:-1] if char != " " and (char in _UNSEEN or not char.isprintable())]
    return [*spaces, *(f"{what} within" for what in dict.fromkeys(within))]


def required_text(row: Row, column: str) -> str:
    """The text in a column that every row must have; it may be empty.

    Raises:
        RowError: the column is missing, or its value is not a text.
    """
    value = present(row, column)
    if not isinstance(value, str):
        raise RowError(f"{described(value)} where a text is expected", column=column)
    return value


def optional_text(row: Row, column: str | None) -> str:
    """The text in an optional column; empty if it is missing or null."""
    return "" if column is None or row.get(column) is None else required_text(row, column)


def optional_list(row: Row, column: str | None) -> list[Any]:
    """The list in an optional column; the JSON text of a list is read too, since a CSV file can only have texts."""
    value = None if column is None else row.get(column)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError(f"{described(value)} where a list is expected", column=column) from None
    if value is None or value == "" or (isinstance(value, str) and value.isspace()):
        return []
    if not isinstance(value, list):
        raise RowError(f"{described(value)} where a list is expected", column=column)
    return value


def optional_objects(row: Row, column: str | None) -> list[Mapping[str, Any]]:
    """The objects of a list in an optional column."""
    found = optional_list(row, column)
    for number, item in enumerate(found, start=1):
        if not isinstance(item, Mapping):
            raise RowError(f"item {number} is {described(item)} where an object is expected", column=column)
    return found


def half_character(value: Any) -> str | None:
    """The first lone surrogate in a value (scraped texts have these where an emoji was cut); None if all of it is text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):x}"
    return None


def described(value: Any) -> str:
    """A value for a message: its kind, and the value itself if it is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"'{str(value).lower()}', a truth value,"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 40 else value[:37] + '…'}'" if value else "an empty text"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(str, list(value)[:6]))}" if value else "an empty object"
    return f"a {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A prompt with answers to it.

    Args:
        prompt: the question, with all earlier turns.
        answers: the better and the worse one for a preference, one for a judgement, none for a prompt.
        values: the row's other values: `label` for a judgement, whether the answer is good; `answer` for a prompt, which the prompt doesn't
            show, and other columns of texts or numbers.
    """

    prompt: Conversation
    answers: Sequence[Message] = ()
    values: Mapping[str, Any] = field(default_factory=dict)

    def answered(self) -> list[Conversation]:
        """The conversation with each answer; only the answer is trained."""
        before = [replace(message, train=message.train and message.role != "assistant") for message in self.prompt.messages]
        return [replace(self.prompt, messages=[*before, replace(answer, train=True)]) for answer in self.answers]

    def known(self) -> Conversation:
        """The conversation with the good answer; without an answer if none is known."""
        good = self.answers[0].content if self.answers and self.values.get("label", True) else self.values.get("answer")
        answer = [Message("assistant", good)] if good else []
        return replace(self.prompt, messages=[*self.prompt.messages, *answer])

    def changed(self, change: Callable[[Conversation], Conversation]) -> PromptRecord:
        """The record with changed conversations; `change` must change the prompt in the same way for every answer."""
        if not self.answers:
            return replace(self, prompt=change(self.prompt))
        made = [change(replace(self.prompt, messages=[*self.prompt.messages, answer])) for answer in self.answers]
        return replace(self, prompt=replace(made[0], messages=made[0].messages[:-1]), answers=[one.messages[-1] for one in made])


Record = Conversation | PromptRecord | str
AnyRecord = TypeVar("AnyRecord", bound=Conversation | PromptRecord | str)


def changed(record: AnyRecord, change: Callable[[Conversation], Conversation]) -> AnyRecord:
    """A record with changed conversations; a document stays unchanged."""
    if isinstance(record, PromptRecord):
        return record.changed(change)  # type: ignore[return-value]
    return change(record) if isinstance(record, Conversation) else record  # type: ignore[return-value]


def texts_of(record: Record) -> Iterator[str]:
    """Every text in a record."""
    if isinstance(record, str):
        yield record
        return
    conversation = record.prompt if isinstance(record, PromptRecord) else record
    answers, values = (record.answers, record.values) if isinstance(record, PromptRecord) else ((), {})
    yield from (message.text for message in (*conversation.messages, *answers))
    yield from (json.dumps(tool, ensure_ascii=False) for tool in conversation.tools)
    yield from (value for value in values.values() if isinstance(value, str))


def with_system(record: AnyRecord, system: str) -> AnyRecord:
    """A record with a system text, unless it has its own."""

    def added(conversation: Conversation) -> Conversation:
        if conversation.system is not None:
            return conversation
        return replace(conversation, messages=[Message("system", system), *conversation.messages])

    return changed(record, added)


def conversations_of(record: Record) -> list[Conversation]:
    """The conversations of a record, each with an answer, for the certificate that training and inference use the same tokens."""
    if isinstance(record, PromptRecord):
        return record.answered() or [replace(record.prompt, messages=[*record.prompt.messages, Message("assistant", "OK.")])]
    return [record] if isinstance(record, Conversation) else []


def asked_of(record: Record) -> Conversation | None:
    """The conversation to ask a model, with its expected answer if there is one; None for a document."""
    if isinstance(record, PromptRecord):
        return record.known()
    return record if isinstance(record, Conversation) else None

"""From a row's list of turns to messages.

Formats have different names for a turn's fields and roles (`TurnStyle`).

Rows have tool calls as OpenAI's objects, as the functions in those, as JSON text of either or of a list of them (ShareGPT's turns of
`function_call`), and with arguments as JSON text (OpenAI's own interface). They all become OpenAI's objects, whose arguments are an object:
chat templates write them as JSON, and would quote a text. Null fields of objects are removed, because Parquet and Arrow give every struct
the fields of all others. In JSON text they stay, since they were written there on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from llmmod.data.rows.records import Row, RowError, described, optional_objects
from llmmod.render.conversation import Message


class TurnStyle(NamedTuple):
    """The names of a turn's fields and roles.

    Args:
        role: the field with the role.
        text: the field with the text.
        roles: the data's names of roles -> system, user, assistant, tool.
    """

    role: str
    text: str
    roles: Mapping[str, str]


OPENAI = TurnStyle("role", "content", {
    "user": "user", "assistant": "assistant", "system": "system", "developer": "system", "tool": "tool", "function": "tool",
    "function_call": "assistant", "tool_call": "assistant", "tool_calls": "assistant", "tool_response": "tool",
})  # fmt: skip
SHAREGPT = TurnStyle("from", "value", {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": "assistant", "tool_call": "assistant", "tool_calls": "assistant",
    "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
})  # fmt: skip

# Roles whose text is a call, or a list of them, as JSON.
_CALLS = ("function_call", "tool_call", "tool_calls")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_EXPECTED = "where a call of a tool, an object with name and arguments, is expected"


def read_turns(turns: Sequence[Any], column: str | None, style: TurnStyle) -> list[Message]:
    """The messages of a list of objects.

    Args:
        turns: objects with a role and a text; `train: false` or `weight: 0` in one keeps an assistant turn out of the loss.
        column: of the turns, for the error.
        style: the names of their fields and roles.

    Raises:
        RowError: a turn is not an object, lacks a field, or has an unknown role.
    """
    found: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        message = _read_turn(turn, f"turn {number}", column, style)
        is_call = isinstance(turn, Mapping) and turn.get(style.role) in _CALLS
        if is_call and found and found[-1].role == "assistant" and found[-1].train == message.train:
            found[-1] = replace(found[-1], tool_calls=[*found[-1].tool_calls, *message.tool_calls])  # one answer: a text, then calls
        else:
            found.append(message)
    return found


def _read_turn(turn: Any, name: str, column: str | None, style: TurnStyle) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"{name} is {described(turn)} where an object with {style.role} and {style.text} is expected", column=column)
    calls = [call for field in ("tool_calls", "function_call") for call in _calls_in(turn, field, name, column)]
    missing = [key for key in (style.role, style.text) if turn.get(key) is None and not (calls and key == style.text)]
    if null := next((key for key in missing if key in turn), None):
        raise RowError(f"{name}, {null}: null where a text is expected", column=column)
    if missing:
        raise RowError(f"{name} doesn't have {' and '.join(missing)}; it is {described(turn)}", column=column)
    given_role = turn[style.role]
    role = style.roles.get(given_role) if isinstance(given_role, str) else None
    if role is None:
        raise RowError(f"{name} has the {style.role} {given_role!r}; known are {', '.join(style.roles)}", column=column)
    is_call = given_role in _CALLS
    text = "" if is_call or turn.get(style.text) is None else joined_text(turn[style.text])
    if text is None:
        raise RowError(f"{name} has {described(turn[style.text])} where a text is expected", column=column)
    calls += _calls_in(turn, style.text, name, column) if is_call else []
    reasoning = _reasoning(turn, name, column)
    for what, given in (("calls tools", calls), ("has reasoning", reasoning)):
        if given and role != "assistant":
            raise RowError(f"{name}, of {role}, {what}, which only an answer can", column=column)
    weights = [turn[key] for key in ("train", "weight") if turn.get(key) is not None]
    if any(value not in (0, 1) for value in weights):  # True == 1 and False == 0
        raise RowError(f"{name} has train or weight {weights[0]!r}; allowed are true, false, 0 and 1", column=column)
    return Message(role, text, train=all(weights), tool_calls=calls, reasoning=reasoning)


def joined_text(value: Any) -> str | None:
    """A turn's text: a text, or the joined parts of a list `{"type": "text", "text": …}` (or `value`); None for another value."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    texts: list[str] = []
    for part in value:
        if not isinstance(part, Mapping) or part.get("type") not in (None, "text"):
            return None
        found = [part[name] for name in ("text", "value") if part.get(name) is not None]
        if len(found) != 1 or not isinstance(found[0], str):
            return None
        texts.append(found[0])
    return "".join(texts)


def _reasoning(turn: Mapping[str, Any], name: str, column: str | None) -> str:
    """The reasoning of a turn, from the first of the known fields that it has."""
    for field in _REASONING:
        if turn.get(field) is not None:
            text = joined_text(turn[field])
            if text is None:
                raise RowError(f"{name}, {field}: {described(turn[field])} where a text is expected", column=column)
            if text.strip():
                return text
    return ""


def read_tools(row: Row, columns: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """The definitions of tools in a row, without null fields.

    Raises:
        RowError: not a list of objects.
    """
    column = columns.get("tools")
    found = optional_objects(row, column)
    given_as_text = column is not None and isinstance(row.get(column), str)
    return found if given_as_text else [without_nulls(tool) for tool in found]


def without_nulls(value: Any) -> Any:
    """A value without null fields of objects at any depth; items of lists stay."""
    if isinstance(value, Mapping):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _calls_in(turn: Mapping[str, Any], field: str, name: str, column: str | None) -> list[Mapping[str, Any]]:
    try:
        return read_calls(turn.get(field))
    except RowError as error:
        raise RowError(f"{name}, {field}: {error.found}", column=column) from None


def read_calls(value: Any) -> list[Mapping[str, Any]]:
    """The calls in a value: `{"type": "function", "function": {"name": …, "arguments": {…}}}`, with `id` if a call has one.

    Args:
        value: a call, a list of calls, JSON text of either, or None.

    Raises:
        RowError: another value.
    """
    found = _parsed(value) if isinstance(value, str) and value.strip() else without_nulls(value)
    if found is None or found == "" or (isinstance(found, str) and found.isspace()):
        return []
    if not isinstance(found, list | Mapping):
        raise RowError(f"{described(value)} {_EXPECTED}")
    calls = found if isinstance(found, list) else [found]
    return [_call(call, f"item {number}" if isinstance(found, list) else "it") for number, call in enumerate(calls, start=1)]


def _call(given: Any, name: str) -> Mapping[str, Any]:
    call = _parsed(given) if isinstance(given, str) else given
    if not isinstance(call, Mapping):
        raise RowError(f"{name} is {described(given)} {_EXPECTED}")
    function = call.get("function") if isinstance(call.get("function"), Mapping) else call
    assert isinstance(function, Mapping)
    called = function.get("name")
    if not isinstance(called, str) or not called.strip():
        raise RowError(f"{name} is {described(call)} {_EXPECTED}")
    arguments: Any = next((function[name] for name in ("arguments", "parameters") if function.get(name) is not None), {})
    parsed = arguments if not isinstance(arguments, str) else _parsed(arguments) if arguments.strip() else {}
    if not isinstance(parsed, Mapping):
        raise RowError(f"the arguments of '{called}' are {described(arguments)} where an object, or JSON text of one, is expected")
    known = {"type": "function"} | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})
    return known | {"function": {"name": called, "arguments": parsed}}


def _parsed(text: str) -> Any:
    """The value of a JSON text; the text itself if it isn't JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text

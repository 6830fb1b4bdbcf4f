"""A list of turns, as rows hold them, to a conversation that can be rendered and trained.

Formats differ in what they call a turn's fields and roles; what may follow what is the same for all.

Calls of tools as rows hold them, to one representation: OpenAI's objects, whose arguments are an object and no text.

Rows have them as OpenAI's objects, as the functions in those, as JSON text of either or of a list of them (ShareGPT's turns of
`function_call`), and with arguments as JSON text (OpenAI's own interface). Chat templates write `function.arguments` as JSON themselves:
given a text, they would write that text in quotes. What is null in an object is left out: Parquet and Arrow give every struct the fields
of all others. In JSON text it stays, for somebody wrote it there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmmod.data.rows.records import Row, RowError, described, optional_list, optional_objects, optional_text, present
from llmmod.render.conversation import Conversation, Message

_EXPECTED = "where a call of a tool, an object with name and arguments, is expected"


def read_calls(value: Any) -> list[Mapping[str, Any]]:
    """The calls in a value: `{"type": "function", "function": {"name": …, "arguments": {…}}}`, and `id` where a call has one.

    Args:
        value: a call, a list of calls, JSON text of either, or None.

    Raises:
        RowError: something else.
    """
    found = _parsed(value) if isinstance(value, str) and value.strip() else without_nulls(value)
    if found is None or found == "" or (isinstance(found, str) and found.isspace()):
        return []
    if not isinstance(found, list | Mapping):
        raise RowError(f"{described(value)} {_EXPECTED}")
    calls = found if isinstance(found, list) else [found]
    return [_call(call, f"item {number}" if isinstance(found, list) else "it") for number, call in enumerate(calls, start=1)]


def without_nulls(value: Any) -> Any:
    """A value without the fields of objects that are null, however deep; items of lists stay."""
    if isinstance(value, Mapping):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def joined_text(value: Any) -> str | None:
    """A turn's text: a text, or a list of parts `{"type": "text", "text": …}` (or `value`), joined; None where it is neither."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    texts = [_part(part) for part in value]
    return None if any(text is None for text in texts) else "".join(text for text in texts if text is not None)


def _part(part: Any) -> str | None:
    """The text of a part that is one."""
    if not isinstance(part, Mapping) or part.get("type") not in (None, "text"):
        return None
    found = [part[name] for name in ("text", "value") if part.get(name) is not None]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else None


def _call(given: Any, name: str) -> Mapping[str, Any]:
    call = _parsed(given) if isinstance(given, str) else given
    if not isinstance(call, Mapping):
        raise RowError(f"{name} is {described(given)} {_EXPECTED}")
    function = call.get("function") if isinstance(call.get("function"), Mapping) else call
    assert isinstance(function, Mapping)
    called = function.get("name")
    if not isinstance(called, str) or not called.strip():
        raise RowError(f"{name} is {described(call)} {_EXPECTED}")
    known = {"type": "function"} | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})
    return known | {"function": {"name": called, "arguments": _arguments(function, called)}}


def _arguments(function: Mapping[str, Any], called: str) -> Any:
    given: Any = next((function[name] for name in ("arguments", "parameters") if function.get(name) is not None), {})
    arguments = given if not isinstance(given, str) else _parsed(given) if given.strip() else {}
    if not isinstance(arguments, Mapping):
        raise RowError(f"the arguments of '{called}' are {described(given)} where an object, or JSON text of one, is expected")
    return arguments


def _parsed(text: str) -> Any:
    """What a JSON text says; the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# What may come before a turn of each role; None is the beginning. Questions in a row are one, answers in a row are not.
_BEFORE: Mapping[str, tuple[str | None, ...]] = {
    "system": (None,),
    "user": (None, "system", "user", "assistant", "tool"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
# Roles whose text is a call, or a list of them, as JSON.
_CALLS = ("function_call", "tool_call", "tool_calls")
_REASONING = ("reasoning_content", "thinking", "reasoning")


def find_turn_columns(available: Collection[str], given: Mapping[str, str], usual: Mapping[str, Sequence[str]]) -> dict[str, str] | None:
    """Role -> column, None where there is no column for the messages. What rows may lack has its usual name only where nothing is given."""
    found = dict(given)
    for role in usual if not given else ("messages",):
        name = next((name for name in usual[role] if name in available), None)
        if role not in found and name is not None:
            found[role] = name
    return found if "messages" in found else None


def holds_turns(head: Sequence[Row], column: str, keys: tuple[str, str]) -> bool:
    """Whether the first list of turns in `head` has turns with these fields."""
    for row in head:
        try:
            turns = optional_list(row, column)
        except RowError:
            continue
        if turns:
            return isinstance(turns[0], Mapping) and all(key in turns[0] for key in keys)
    return False


def read_row_of_turns(row: Row, columns: Mapping[str, str], *, keys: tuple[str, str], roles: Mapping[str, str]) -> Conversation:
    """The conversation of a row with a list of turns; a `system` column speaks where the turns have no system turn.

    Raises:
        RowError: no list, a turn that can't be read, or turns that can't be trained.
    """
    column = columns["messages"]
    present(row, column)
    turns = optional_list(row, column)
    if not turns:
        raise RowError(f"{described(row[column])} where a list of turns is expected", column=column)
    messages = read_turns(turns, column, keys=keys, roles=roles)
    system = optional_text(row, columns.get("system"))
    if system and messages and messages[0].role != "system":
        messages.insert(0, Message("system", system))
    return as_conversation(messages, column, tools=read_tools(row, columns))


def read_tools(row: Row, columns: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """The definitions of tools in a row, without what is null in them.

    Raises:
        RowError: something else than a list of objects.
    """
    column = columns.get("tools")
    found = optional_objects(row, column)
    given_as_text = column is not None and isinstance(row.get(column), str)
    return found if given_as_text else [without_nulls(tool) for tool in found]


def read_turns(turns: Sequence[Any], column: str | None, *, keys: tuple[str, str], roles: Mapping[str, str]) -> list[Message]:
    """The messages of a list of objects.

    Args:
        turns: objects with a role and a text; `train: false` or `weight: 0` in one keeps an assistant turn out of the loss.
        column: the column they stand in, for the message.
        keys: the fields with the role's name and with the text.
        roles: the data's names of roles -> system, user, assistant, tool.

    Raises:
        RowError: a turn is no object, lacks a field, or has a role that isn't known.
    """
    found: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        message = _turn(turn, f"turn {number}", column, keys, roles)
        is_call = isinstance(turn, Mapping) and turn.get(keys[0]) in _CALLS
        if is_call and found and found[-1].role == "assistant" and found[-1].train == message.train:
            found[-1] = replace(found[-1], tool_calls=[*found[-1].tool_calls, *message.tool_calls])  # one answer: a text, then calls
        else:
            found.append(message)
    return found


def as_conversation(messages: Sequence[Message], column: str | None = None, *, tools: Sequence[Any] = ()) -> Conversation:
    """A conversation in which each answer follows a question, up to its last answer: what follows that has nothing to train.

    Args:
        messages: as the row has them.
        column: where they come from, for the message.
        tools: definitions of the tools that the messages call.

    Raises:
        RowError: no answer, none that is trained, an answer or a question that is empty, or an answer that follows no question.
    """
    _check_order(messages, column)
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise RowError("no turn of the assistant, so there is nothing to train", column=column)
    if not any(messages[index].train for index in answers):
        raise RowError("every turn of the assistant has train: false or weight: 0, so there is nothing to train", column=column)
    return Conversation(list(messages[: answers[-1] + 1]), list(tools))


def as_prompt(messages: Sequence[Message], column: str | None = None, *, tools: Sequence[Any] = ()) -> Conversation:
    """A conversation that asks for an answer: its last turn is the user's, or a tool's.

    Args:
        messages: as the row has them.
        column: where they come from, for the message.
        tools: definitions of the tools that the messages call.

    Raises:
        RowError: nothing is asked, a turn is empty, or one follows another that it can't follow.
    """
    _check_order(messages, column)
    if messages[-1].role not in ("user", "tool"):
        raise RowError(f"it ends with a turn of {messages[-1].role}, where a question is expected", column=column)
    return Conversation(list(messages), list(tools))


def _check_order(messages: Sequence[Message], column: str | None) -> None:
    if not messages:
        raise RowError("no turns", column=column)
    previous: str | None = None
    for number, message in enumerate(messages, start=1):
        if previous not in _BEFORE[message.role]:
            after = f"after a turn of {previous}" if previous else "at the beginning"
            raise RowError(f"turn {number} is a turn of {message.role} {after}", column=column)
        if message.role in ("user", "assistant") and not message.text.strip():
            raise RowError(f"turn {number}, of {message.role}, is empty", column=column)
        previous = message.role


def _turn(turn: Any, name: str, column: str | None, keys: tuple[str, str], roles: Mapping[str, str]) -> Message:
    role_key, text_key = keys
    if not isinstance(turn, Mapping):
        raise RowError(f"{name} is {described(turn)} where an object with {role_key} and {text_key} is expected", column=column)
    calls = [call for field in ("tool_calls", "function_call") for call in _calls(turn, field, name, column)]
    missing = [key for key in (role_key, text_key) if turn.get(key) is None and not (calls and key == text_key)]
    if null := next((key for key in missing if key in turn), None):
        raise RowError(f"{name}, {null}: null where a text is expected", column=column)
    if missing:
        raise RowError(f"{name} has no {' and no '.join(missing)}; it is {described(turn)}", column=column)
    role = roles.get(turn[role_key]) if isinstance(turn[role_key], str) else None
    if role is None:
        raise RowError(f"{name} has the {role_key} {turn[role_key]!r}; known are {', '.join(roles)}", column=column)
    is_call = turn[role_key] in _CALLS
    text = "" if is_call or turn.get(text_key) is None else joined_text(turn[text_key])
    if text is None:
        raise RowError(f"{name} holds {described(turn[text_key])} where a text is expected", column=column)
    calls += _calls(turn, text_key, name, column) if is_call else []
    reasoning = _reasoning(turn, name, column)
    for what, given in (("calls tools", calls), ("has reasoning", reasoning)):
        if given and role != "assistant":
            raise RowError(f"{name}, of {role}, {what}, which only an answer can", column=column)
    return Message(role, text, train=_trained(turn, name, column), tool_calls=calls, reasoning=reasoning)


def _calls(turn: Mapping[str, Any], field: str, name: str, column: str | None) -> list[Mapping[str, Any]]:
    try:
        return read_calls(turn.get(field))
    except RowError as error:
        raise RowError(f"{name}, {field}: {error.found}", column=column) from None


def _reasoning(turn: Mapping[str, Any], name: str, column: str | None) -> str:
    """What a turn thinks, under the first of its names that the turn has."""
    for field in _REASONING:
        if turn.get(field) is not None:
            text = joined_text(turn[field])
            if text is None:
                raise RowError(f"{name}, {field}: {described(turn[field])} where a text is expected", column=column)
            if text.strip():
                return text
    return ""


def _trained(turn: Mapping[str, Any], name: str, column: str | None) -> bool:
    given = [turn[key] for key in ("train", "weight") if turn.get(key) is not None]
    if any(value not in (0, 1) for value in given):  # True == 1 and False == 0
        raise RowError(f"{name} has train or weight {given[0]!r}; allowed are true, false, 0 and 1", column=column)
    return all(given)

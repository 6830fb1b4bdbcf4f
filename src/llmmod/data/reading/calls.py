"""Calls of tools as rows hold them, to one representation: OpenAI's objects, whose arguments are an object and no text.

Rows have them as OpenAI's objects, as the functions in those, as JSON text of either or of a list of them (ShareGPT's turns of
`function_call`), and with arguments as JSON text (OpenAI's own interface). Chat templates write `function.arguments` as JSON themselves:
given a text, they would write that text in quotes. What is null in an object is left out: Parquet and Arrow give every struct the fields
of all others. In JSON text it stays, for somebody wrote it there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmmod.data.row import RowError, described

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

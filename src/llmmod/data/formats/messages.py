"""OpenAI's list of messages: `messages: [{role: user, content: …}, {role: assistant, content: …}]`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from llmmod.data.rows.columns import find_turn_columns, holds_turns, read_row_of_turns
from llmmod.data.rows.records import Row
from llmmod.data.rows.turns import OPENAI
from llmmod.render.conversation import Conversation

KIND = "conversation"
ROLES = ("messages", "system", "tools")
REQUIRED = ("messages",)
USUAL: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "system": ("system", "system_prompt"),
    "tools": ("tools",),
}


def find_columns(available: Collection[str], given: Mapping[str, str]) -> dict[str, str] | None:
    """Role -> column; None if none of the columns has a usual name for a list of turns."""
    return find_turn_columns(available, given, USUAL)


def recognises(head: Sequence[Row], columns: Mapping[str, str]) -> bool:
    """Whether the first turns have the fields `role` and `content`."""
    return holds_turns(head, columns["messages"], OPENAI)


def read(row: Row, columns: Mapping[str, str]) -> Conversation:
    """The conversation of a row.

    Raises:
        RowError: not a list of turns, a turn that can't be read, or turns that can't be trained on.
    """
    return read_row_of_turns(row, columns, OPENAI)

"""Instruction and answer in separate columns, as in Stanford Alpaca (Taori et al. 2023) and in LLaMA-Factory's alpaca format.

`prompt` and `query` are one question, joined by a newline; `history` is a list of earlier [query, response] pairs; `system` is the row's
own system text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from llmmod.data.rows.columns import USUAL, as_conversation, read_question
from llmmod.data.rows.records import Row, RowError, described, required_text
from llmmod.render.conversation import Conversation, Message

KIND = "conversation"
ROLES = ("prompt", "query", "response", "history", "system")
REQUIRED = ("prompt", "response")


def find_columns(available: Collection[str], given: Mapping[str, str]) -> dict[str, str] | None:
    """Role -> column; None if the rows don't have a question or an answer.

    A role that isn't given is found by its usual names; an optional one only if none are given, so that another column called `input`
    doesn't become part of the question.
    """
    found = dict(given)
    for role in ROLES if not given else REQUIRED:
        name = next((name for name in USUAL[role] if name in available and name not in found.values()), None)
        if role not in found and name is not None:
            found[role] = name
    return found if "response" in found and ("prompt" in found or "query" in found) else None


def recognises(head: Sequence[Row], columns: Mapping[str, str]) -> bool:
    """Whether the first rows have this format, by the names of the columns."""
    return True


def read(row: Row, columns: Mapping[str, str]) -> Conversation:
    """The conversation of a row.

    Raises:
        RowError: question or answer missing, empty or not a text, or a history that isn't made of pairs.
    """
    messages, column = read_question(row, columns), columns["response"]
    if isinstance(row.get(column), list):
        found = f"{described(row[column])} where a text is expected"
        raise RowError(found, column=column, do="For answers to compare, use dataset.format=preference")
    answer = required_text(row, column)
    if not answer.strip():
        raise RowError("empty", column=column)
    return as_conversation([*messages, Message("assistant", answer)])

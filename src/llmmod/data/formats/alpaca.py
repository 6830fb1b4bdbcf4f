"""Instruction and answer in columns of their own, as in Stanford Alpaca (Taori et al. 2023) and in LLaMA-Factory's alpaca format.

`prompt` and `query` are one question, joined by a newline; `history` is a list of [query, response] pairs that came before it;
`system` is the row's own system text.
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
    """Role -> column, None where the rows have no question or no answer.

    A role that isn't given has its usual name; one that a row may lack only where nothing is given, so that a stray column
    called `input` does not end up in the question.
    """
    found = dict(given)
    for role in ROLES if not given else REQUIRED:
        name = next((name for name in USUAL[role] if name in available and name not in found.values()), None)
        if role not in found and name is not None:
            found[role] = name
    return found if "response" in found and ("prompt" in found or "query" in found) else None


def recognises(head: Sequence[Row], columns: Mapping[str, str]) -> bool:
    """Whether the first rows look like this format: the names of the columns say it."""
    return True


def read(row: Row, columns: Mapping[str, str]) -> Conversation:
    """The conversation of a row.

    Raises:
        RowError: question or answer missing, empty or not a text, or a history that isn't made of pairs.
    """
    messages, column = read_question(row, columns), columns["response"]
    if isinstance(row.get(column), list):
        found = f"{described(row[column])} where a text is expected"
        raise RowError(found, column=column, do="Answers that are compared are for dataset.format=preference")
    answer = required_text(row, column)
    if not answer.strip():
        raise RowError("empty", column=column)
    return as_conversation([*messages, Message("assistant", answer)])

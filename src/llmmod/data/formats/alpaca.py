"""Instruction and answer in columns of their own, as in Stanford Alpaca (Taori et al. 2023) and in LLaMA-Factory's alpaca format.

`prompt` and `query` are one question, joined by a newline; `history` is a list of [query, response] pairs that came before it;
`system` is the row's own system text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llmmod.data.rows.records import Row, RowError, described, optional_list, optional_text, required_text
from llmmod.data.rows.turns import as_conversation
from llmmod.render.conversation import Conversation, Message

KIND = "conversation"
ROLES = ("prompt", "query", "response", "history", "system")
REQUIRED = ("prompt", "response")
# The usual names of each role, in the order in which they are looked for.
USUAL: Mapping[str, tuple[str, ...]] = {
    "prompt": ("instruction", "prompt", "question", "query", "input"),
    "query": ("input", "query", "context"),
    "response": ("output", "response", "answer", "completion"),
    "history": ("history",),
    "system": ("system", "system_prompt"),
}


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
        RowError: question or answer missing, empty or no text, or a history that isn't made of pairs.
    """
    return as_conversation([*read_question(row, columns), Message("assistant", _answer(row, columns["response"]))])


def read_question(row: Row, columns: Mapping[str, str]) -> list[Message]:
    """The messages of a row up to its question, of the columns `prompt`, `query`, `history` and `system`.

    Raises:
        RowError: the question is missing, empty or no text, or a history that isn't made of pairs.
    """
    prompt = required_text(row, columns["prompt"]) if "prompt" in columns else ""
    query = optional_text(row, columns.get("query"))
    question = "\n".join(part for part in (prompt, query) if part)
    if not question.strip():
        raise RowError("empty", column=columns.get("prompt", columns.get("query")))
    system = optional_text(row, columns.get("system"))
    messages = [Message("system", system)] if system else []
    for asked, answered in _pairs(row, columns.get("history")):
        messages += [Message("user", asked), Message("assistant", answered)]
    return [*messages, Message("user", question)]


def _answer(row: Row, column: str) -> str:
    if isinstance(row.get(column), list):
        found = f"{described(row[column])} where a text is expected"
        raise RowError(found, column=column, do="Answers that are compared are for dataset.format=preference")
    answer = required_text(row, column)
    if not answer.strip():
        raise RowError("empty", column=column)
    return answer


def _pairs(row: Row, column: str | None) -> list[Any]:
    pairs = optional_list(row, column)
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"item {number} is {described(pair)} where a pair of texts, [query, response], is expected", column=column)
        for name, text in zip(("query", "response"), pair, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise RowError(f"item {number}, {name}: {described(text)} where a text is expected", column=column)
    return pairs

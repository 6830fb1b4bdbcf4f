"""Prompts for ppo and grpo, with or without the data's own answer.

A prompt is read as in alpaca, or from a list of turns. An answer, from a column or from the last turn, is passed to reward functions and
not shown to the model; so are the row's other columns of texts or numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llmmod.data.rows import columns as shared
from llmmod.data.rows.records import PromptRecord, Row, RowError, described
from llmmod.data.rows.turns import read_tools

KIND = "prompt"
ROLES = (*shared.PROMPT_ROLES, "response")
REQUIRED = ("prompt",)
USUAL: Mapping[str, tuple[str, ...]] = {
    **shared.USUAL,
    "response": ("answer", "output", "response", "completion", "solution", "ground_truth"),
}


def find_columns(available: Collection[str], given: Mapping[str, str]) -> dict[str, str] | None:
    """Role -> column; None if rows don't have a prompt. The answer is searched only if columns are not given."""
    name = next((name for name in USUAL["response"] if name in available), None)
    return shared.find_prompt_columns(available, given, {"response": name} if name is not None and not given else {})


def recognises(head: Sequence[Row], columns: Mapping[str, str]) -> bool:
    """Whether the first rows have this format, by the names of the columns."""
    return True


def read(row: Row, columns: Mapping[str, str]) -> PromptRecord:
    """The prompt of a row, `answer`, and the values of the other columns.

    Raises:
        RowError: the prompt is missing or something else, or the answer is neither a text nor a number.
    """
    messages = shared.read_prompt(row, columns)
    column = columns.get("response")
    value: Any = None if column is None else row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise RowError(f"{described(value)} where a text or a number is expected", column=column)
    answer = "" if value is None else str(value)
    if messages[-1].role == "assistant":
        messages, answer = messages[:-1], answer or messages[-1].text
    prompt = shared.as_prompt(messages, shared.prompt_column(columns), tools=read_tools(row, columns))
    used = {*columns.values(), "prompt", "answer", "prompt_ids"}
    others = {str(name): value for name, value in row.items() if name not in used and isinstance(value, str | int | float)}
    return PromptRecord(prompt, (), {**others, "answer": answer})

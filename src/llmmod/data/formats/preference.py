"""Answers to one prompt, the best one first: for reward models and for dpo.

It reads three kinds of rows. `prompt`, `chosen` and `rejected`, where each answer is a text or a turn (trl, LLaMA-Factory's ranking).
`chosen` and `rejected` as whole conversations with the same beginning, the prompt: as lists of turns (trl's implicit prompt,
ultrafeedback_binarized) or as transcripts (Anthropic/hh-rlhf). And LLaMA-Efficient-Tuning's `output`, a list of two or more ranked answers.
A prompt is read as in alpaca, or from a list of turns.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llmmod.data.rows import columns as shared
from llmmod.data.rows.records import PromptRecord, Row, RowError, present
from llmmod.data.rows.turns import read_tools
from llmmod.render.conversation import Message

KIND = "preference"
ROLES = (*shared.PROMPT_ROLES, "chosen", "rejected", "response")
REQUIRED = ("chosen", "rejected")
USUAL: Mapping[str, tuple[str, ...]] = {
    **shared.USUAL,
    "chosen": ("chosen",),
    "rejected": ("rejected",),
}
_TURN = re.compile(r"\n\n(Human|Assistant):[ \t]?")  # in a transcript
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def find_columns(available: Collection[str], given: Mapping[str, str]) -> dict[str, str] | None:
    """Role -> column; None if rows don't have two answers. `response` is used only without `chosen` and `rejected`."""
    pair = {role: given.get(role, role) for role in REQUIRED if role in given or role in available}
    if len(pair) == len(REQUIRED) and "response" not in given:
        return shared.find_prompt_columns(available, given, pair) or {**given, **pair}
    name = given.get("response", next((name for name in USUAL["response"] if name in available), None))
    if name is None or set(REQUIRED) & set(given):
        return None
    return shared.find_prompt_columns(available, given, {"response": name})


def recognises(head: Sequence[Row], columns: Mapping[str, str]) -> bool:
    """Whether the first rows have this format, by the names of the columns or because the first answer is a list."""
    return "response" not in columns or shared.holds_ranked(head, columns["response"])


def read(row: Row, columns: Mapping[str, str]) -> PromptRecord:
    """The prompt of a row and its answers, best first: two, or more in one column.

    Raises:
        RowError: an answer is missing or not an answer, there is only one, two are the same, or the prompt is missing.
    """
    if "response" in columns:
        return shared.read_ranked(row, columns, columns["response"])
    names = [columns[role] for role in REQUIRED]
    asked = shared.has_prompt(columns)
    sides = [_side(row, name, transcript=not asked) for name in names]
    whole = [side[0].role != "assistant" for side in sides]
    if all(whole):
        differ = (at for at, (one, other) in enumerate(zip(*sides, strict=False)) if one != other)
        same = next(differ, min(map(len, sides)))
        if not same:
            raise RowError(f"it begins differently from '{names[0]}', so the two don't answer the same prompt", column=names[1])
        prompt = shared.with_own_system(sides[0][:same], row, columns)
        return _compared(prompt, [side[same:] for side in sides], row, columns, names)
    if any(whole):
        found = f"a conversation, but '{names[whole.index(False)]}' is only an answer"
        raise RowError(found, column=names[whole.index(True)])
    if not asked:
        raise RowError("an answer without a prompt", do="Name its column: dataset.columns.prompt=…", column=names[0])
    return _compared(shared.read_prompt(row, columns), sides, row, columns, names)


def _compared(
    prompt: Sequence[Message], sides: Sequence[Sequence[Message]], row: Row, columns: Mapping[str, str], names: Sequence[str]
) -> PromptRecord:
    if sides[0] == sides[1]:
        raise RowError(f"the same as '{names[0]}', so they can't be compared", column=names[1])
    answers = [shared.only_answer(side, name) for side, name in zip(sides, names, strict=True)]
    place = shared.prompt_column(columns) or names[0]
    return PromptRecord(shared.as_prompt(prompt, place, tools=read_tools(row, columns)), answers)


def _side(row: Row, column: str, *, transcript: bool) -> list[Message]:
    value = present(row, column)
    if transcript and isinstance(value, str) and _TURN.match(value):
        parts: list[Any] = _TURN.split(value)[1:]
        return [Message(_SPEAKERS[who], text.strip()) for who, text in zip(parts[::2], parts[1::2], strict=True)]
    return shared.read_answer(row, column)

"""From a row's columns to a conversation: finds the columns with turns, prompts and answers, and reads them in order.

A prompt is a text in a column (with Stanford Alpaca's other columns), one turn, or a list of turns. An answer is a text, a turn, or a list
of turns. The formats share these functions; each format defines how its records are composed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

from llmmod.data.rows.records import PromptRecord, Row, RowError, described, optional_list, optional_text, present, required_text
from llmmod.data.rows.turns import OPENAI, SHAREGPT, TurnStyle, read_tools, read_turns
from llmmod.render.conversation import Conversation, Message

# The roles of a prompt's columns: either `messages` or `prompt`, and optional ones.
PROMPT_ROLES = ("prompt", "messages", "query", "history", "system", "tools")
# The usual names of each role's column, in the order of the search.
USUAL: Mapping[str, tuple[str, ...]] = {
    "prompt": ("instruction", "prompt", "question", "query", "input"),
    "query": ("input", "query", "context"),
    "response": ("output", "response", "answer", "completion"),
    "history": ("history",),
    "system": ("system", "system_prompt"),
    "messages": ("messages", "conversations", "conversation"),
    "tools": ("tools",),
}
_MAIN = {"prompt", "messages"}
# The roles that may precede a turn of each role; None is the beginning. Consecutive questions are one, consecutive answers are not.
_BEFORE: Mapping[str, tuple[str | None, ...]] = {
    "system": (None,),
    "user": (None, "system", "user", "assistant", "tool"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def find_turn_columns(available: Collection[str], given: Mapping[str, str], usual: Mapping[str, Sequence[str]]) -> dict[str, str] | None:
    """Role -> column; None without a column for the messages. Optional ones are found by their usual names only if none are given."""
    found = dict(given)
    for role in usual if not given else ("messages",):
        name = next((name for name in usual[role] if name in available), None)
        if role not in found and name is not None:
            found[role] = name
    return found if "messages" in found else None


def holds_turns(head: Sequence[Row], column: str, style: TurnStyle) -> bool:
    """Whether the first list of turns in `head` has turns with these fields."""
    for row in head:
        try:
            turns = optional_list(row, column)
        except RowError:
            continue
        if turns:
            return isinstance(turns[0], Mapping) and style.role in turns[0] and style.text in turns[0]
    return False


def read_row_of_turns(row: Row, columns: Mapping[str, str], style: TurnStyle) -> Conversation:
    """The conversation of a row with a list of turns; a `system` column is used if the turns don't have a system turn.

    Raises:
        RowError: not a list, a turn that can't be read, or turns that can't be trained on.
    """
    column = columns["messages"]
    present(row, column)
    turns = optional_list(row, column)
    if not turns:
        raise RowError(f"{described(row[column])} where a list of turns is expected", column=column)
    messages = with_own_system(read_turns(turns, column, style), row, columns)
    return as_conversation(messages, column, tools=read_tools(row, columns))


def find_prompt_columns(available: Collection[str], given: Mapping[str, str], answers: Mapping[str, str]) -> dict[str, str] | None:
    """Role -> column, with the answers' columns; None without a prompt.

    `messages` is searched only without `prompt`, and optional columns only if none are given.

    Args:
        available: the existing columns.
        given: role -> column, as the user set them.
        answers: role -> column, for the columns that are not part of the prompt.
    """
    found = {**given, **answers}
    for role in PROMPT_ROLES if not given else ("prompt", "messages"):
        name = next((name for name in USUAL[role] if name in available and name not in found.values()), None)
        if name is not None and role not in found and not (role in _MAIN and _MAIN & set(found)):
            found[role] = name
    return found if has_prompt(found) else None


def has_prompt(columns: Mapping[str, str]) -> bool:
    """Whether there is a column with a prompt."""
    return bool({*_MAIN, "query"} & set(columns))


def prompt_column(columns: Mapping[str, str]) -> str | None:
    """The column of a prompt, for a message."""
    return columns.get("messages", columns.get("prompt", columns.get("query")))


def read_prompt(row: Row, columns: Mapping[str, str]) -> list[Message]:
    """The messages of a prompt; those of a list of turns may end with an answer.

    Raises:
        RowError: the column is missing, or doesn't have a prompt.
    """
    column = prompt_column(columns)
    if column is None or ("messages" not in columns and isinstance(present(row, column), str)):
        return read_question(row, columns)
    return with_own_system(read_any_turns(row, column), row, columns)


def read_question(row: Row, columns: Mapping[str, str]) -> list[Message]:
    """The messages of a row up to its question, from the columns `prompt`, `query`, `history` and `system`.

    Raises:
        RowError: the question is missing, empty or not a text, or the history is not a list of pairs.
    """
    prompt = required_text(row, columns["prompt"]) if "prompt" in columns else ""
    query = optional_text(row, columns.get("query"))
    question = "\n".join(part for part in (prompt, query) if part)
    if not question.strip():
        raise RowError("empty", column=columns.get("prompt", columns.get("query")))
    system, history = optional_text(row, columns.get("system")), columns.get("history")
    messages = [Message("system", system)] if system else []
    for number, pair in enumerate(optional_list(row, history), start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"item {number} is {described(pair)} where a pair of texts, [query, response], is expected", column=history)
        for name, text in zip(("query", "response"), pair, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise RowError(f"item {number}, {name}: {described(text)} where a text is expected", column=history)
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return [*messages, Message("user", question)]


def with_own_system(found: list[Message], row: Row, columns: Mapping[str, str]) -> list[Message]:
    """The messages, with the row's system text first if they don't have one."""
    system = optional_text(row, columns.get("system"))
    return [Message("system", system), *found] if system and found and found[0].role != "system" else found


def read_any_turns(row: Row, column: str) -> list[Message]:
    """The messages of a list of turns, or of one turn, with OpenAI's or ShareGPT's fields.

    Raises:
        RowError: turns are missing, or one can't be read.
    """
    value = present(row, column)
    turns: list[Any] = [value] if isinstance(value, Mapping) else optional_list(row, column) if isinstance(value, str | list) else []
    if not turns:
        raise RowError(f"{described(value)} where a text or a list of turns is expected", column=column)
    first = turns[0]
    return read_turns(turns, column, SHAREGPT if isinstance(first, Mapping) and SHAREGPT.role in first else OPENAI)


def read_answer(row: Row, column: str) -> list[Message]:
    """The messages of an answer: one for a text, or those of a list.

    Raises:
        RowError: the answer is missing, empty or of another type.
    """
    value = present(row, column)
    if not isinstance(value, str):
        return read_any_turns(row, column)
    if not value.strip():
        raise RowError("empty", column=column)
    return [Message("assistant", value)]


def only_answer(found: Sequence[Message], column: str) -> Message:
    """The single message of an answer.

    Raises:
        RowError: there are several messages, it is not an answer, or it is empty.
    """
    if len(found) != 1 or found[0].role != "assistant":
        turns = ", ".join(message.role for message in found)
        raise RowError(f"turns of {turns or 'nobody'} where one answer is expected", column=column)
    if not found[0].text.strip():
        raise RowError("empty", column=column)
    return found[0]


def holds_ranked(head: Sequence[Row], column: str) -> bool:
    """Whether the first answer is a list of answers, or a text that begins like a list."""
    first = next((row[column] for row in head if row.get(column) is not None), None)
    return isinstance(first, list | tuple) or (isinstance(first, str) and first.lstrip().startswith("["))


def read_ranked(row: Row, columns: Mapping[str, str], column: str) -> PromptRecord:
    """The prompt of a row, and one column's ranked answers, best first.

    Raises:
        RowError: not a list of at least two texts (a text is not a list of letters), or two are the same.
    """
    value = present(row, column)
    answers = optional_list(row, column) if not isinstance(value, str) or value.lstrip().startswith("[") else []
    if len(answers) < 2:
        raise RowError(f"{described(value)} where at least two answers, best first, are expected", column=column)
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip():
            raise RowError(f"{described(answer)} where the text of an answer is expected", column=column)
    if same := next(((one, other) for one, other in combinations(range(len(answers)), 2) if answers[one] == answers[other]), None):
        raise RowError(f"answers {same[0] + 1} and {same[1] + 1} are the same, so neither is the better one", column=column)
    prompt = as_prompt(read_prompt(row, columns), prompt_column(columns) or column, tools=read_tools(row, columns))
    return PromptRecord(prompt, [Message("assistant", answer) for answer in answers])


def as_conversation(messages: Sequence[Message], column: str | None = None, *, tools: Sequence[Any] = ()) -> Conversation:
    """A conversation in which each answer follows a question, up to its last answer; later turns would not be trained.

    Args:
        messages: of the row.
        column: of the messages, for the error.
        tools: definitions of the tools that the messages call.

    Raises:
        RowError: there is no answer, or no trained answer; a turn is empty, or an answer doesn't follow a question.
    """
    _check_order(messages, column)
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise RowError("it doesn't have a turn of the assistant to train on", column=column)
    if not any(messages[index].train for index in answers):
        raise RowError("all turns of the assistant have train: false or weight: 0, so none would be trained", column=column)
    return Conversation(list(messages[: answers[-1] + 1]), list(tools))


def as_prompt(messages: Sequence[Message], column: str | None = None, *, tools: Sequence[Any] = ()) -> Conversation:
    """A conversation to be answered: its last turn is the user's, or a tool's.

    Args:
        messages, column, tools: as in `as_conversation`.

    Raises:
        RowError: it doesn't end with a question, a turn is empty, or the order of turns is wrong.
    """
    _check_order(messages, column)
    if messages[-1].role not in ("user", "tool"):
        raise RowError(f"it ends with a turn of {messages[-1].role}, where a question is expected", column=column)
    return Conversation(list(messages), list(tools))


def _check_order(messages: Sequence[Message], column: str | None) -> None:
    if not messages:
        raise RowError("it doesn't have turns", column=column)
    previous: str | None = None
    for number, message in enumerate(messages, start=1):
        if previous not in _BEFORE[message.role]:
            after = f"after a turn of {previous}" if previous else "at the beginning"
            raise RowError(f"turn {number} is a turn of {message.role} {after}", column=column)
        if message.role in ("user", "assistant") and not message.text.strip():
            raise RowError(f"turn {number}, of {message.role}, is empty", column=column)
        previous = message.role

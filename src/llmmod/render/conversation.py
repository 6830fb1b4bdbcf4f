"""A conversation: messages in order, each marked as trained or not. Formats read it from a row, and renders write it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmmod.errors import DataError, Problem

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """A message of one side.

    Args:
        role: system, user, assistant, or tool (the result of a call).
        content: the text as it is; placeholders and special tokens in it stay text.
        train: whether the message may be trained; with false, an assistant message is only context.
        tool_calls: calls that an assistant message makes, as OpenAI's objects.
        reasoning: the thoughts before an assistant message's content, if the row has them in a field of their own.
        cut: whether the end of the text was cut off. Then nothing that a render writes after it is trained, above all not the terminator:
            the model would learn to stop at the limit.
    """

    role: str
    content: str
    train: bool = True
    tool_calls: Sequence[Mapping[str, Any]] = ()
    reasoning: str = ""
    cut: bool = False

    @property
    def text(self) -> str:
        """The content, and each tool call as a line of JSON after it."""
        return "\n".join([self.content] * bool(self.content) + self.calls) if self.tool_calls else self.content

    @property
    def calls(self) -> list[str]:
        """Each tool call as a line of JSON."""
        return [json.dumps(call, ensure_ascii=False) for call in self.tool_calls]


class Turn(NamedTuple):
    """A question and its answer.

    Args:
        query: the text between two answers: the user's text, tool results, or both, a line each.
        answer: None if the model is to write it.
        train_query: whether every message of the query may be trained if prompts are; a tool's result never is.
        train_answer: whether the answer may be trained.
        after_cut: the part of the answer after the place where its text was cut off, which is not trained; None: it wasn't cut off.
    """

    query: str
    answer: str | None
    train_query: bool = True
    train_answer: bool = True
    after_cut: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, the system message first if it has one; `tools` are the definitions that calls refer to."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = field(default=())

    @property
    def system(self) -> str | None:
        """The text of the system message, or None; an empty text is not None."""
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else None

    def turns(self) -> Iterator[Turn]:
        """Questions with their answers; if the conversation ends with a question, the last turn's answer is None.

        Raises:
            DataError: an unknown role, a system message that isn't the first, or an answer without a question.
        """
        asked: list[Message] = []
        for number, message in enumerate(self.messages, start=1):
            if message.role in ("user", "tool"):
                asked.append(message)
            elif message.role == "assistant":
                if not asked:
                    raise _misplaced(number, "is an answer without a question before it", "Join answers in a row, or leave such rows out")
                yield _turn(asked, message)
                asked = []
            elif message.role != "system":
                raise _misplaced(number, f"has the role '{message.role}'", f"Known are {', '.join(ROLES)}")
            elif number > 1:
                raise _misplaced(number, "is a system message, but not the first message", "Put it first")
        if asked:
            yield _turn(asked, None)


def left_out(answer: Message, written: str) -> str | None:
    """A tool call or the reasoning of an answer that is missing in its rendered text; None: nothing is missing."""
    if missing := next((name for name in tool_names(answer.tool_calls) if name not in written), None):
        return f"the call of '{missing}'"
    return "the reasoning of an answer" if answer.reasoning.strip() not in written else None


def tool_names(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names in definitions or calls of tools, given as OpenAI's objects or the functions in them."""
    functions = (item.get("function", item) for item in items)
    return [str(function["name"]) for function in functions if isinstance(function, Mapping) and function.get("name")]


def _turn(asked: Sequence[Message], answer: Message | None) -> Turn:
    trainable = all(message.train and message.role == "user" for message in asked)
    query = asked[0].text if len(asked) == 1 else "\n".join(message.text for message in asked)
    if answer is None:
        return Turn(query, None, trainable, False)
    if answer.cut:
        return Turn(query, answer.content, trainable, answer.train, "".join(f"\n{call}" for call in answer.calls))
    return Turn(query, answer.text, trainable, answer.train)


def _misplaced(number: int, found: str, do: str) -> DataError:
    return DataError(Problem("a conversation", f"message {number} {found}", do=do))

"""What a row becomes: a conversation, a document (a text), or a prompt with answers that are compared, judged, or still to be made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from llmmod.render.conversation import Conversation, Message


@dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt with answers to it.

    Args:
        prompt: what is asked, with all that comes before it.
        answers: the better and the worse one of a preference, the one of a judgement, none of a prompt.
        values: what else the row says: `label` of a judgement, whether the answer is a good one; `answer` of a prompt, which the prompt
            never shows, and other columns that are texts or numbers.
    """

    prompt: Conversation
    answers: Sequence[Message] = ()
    values: Mapping[str, Any] = field(default_factory=dict)

    def answered(self) -> list[Conversation]:
        """The conversation with each of the answers, of which it trains that answer alone."""
        before = [replace(message, train=message.train and message.role != "assistant") for message in self.prompt.messages]
        return [replace(self.prompt, messages=[*before, replace(answer, train=True)]) for answer in self.answers]

    def known(self) -> Conversation:
        """The conversation with the answer that is wanted; without one where no good one is known."""
        good = self.answers[0].content if self.answers and self.values.get("label", True) else self.values.get("answer")
        answer = [Message("assistant", good)] if good else []
        return replace(self.prompt, messages=[*self.prompt.messages, *answer])

    def changed(self, change: Callable[[Conversation], Conversation]) -> Prompted:
        """The same with the conversations changed; what changes the prompt must change it alike whatever follows it."""
        if not self.answers:
            return replace(self, prompt=change(self.prompt))
        made = [change(replace(self.prompt, messages=[*self.prompt.messages, answer])) for answer in self.answers]
        return replace(self, prompt=replace(made[0], messages=made[0].messages[:-1]), answers=[one.messages[-1] for one in made])


Record = Conversation | Prompted | str
AnyRecord = TypeVar("AnyRecord", bound=Conversation | Prompted | str)


def changed(record: AnyRecord, change: Callable[[Conversation], Conversation]) -> AnyRecord:
    """A record with its conversations changed; a document has none."""
    if isinstance(record, Prompted):
        return record.changed(change)  # type: ignore[return-value]
    return change(record) if isinstance(record, Conversation) else record  # type: ignore[return-value]


def texts_of(record: Record) -> Iterator[str]:
    """Every text in a record."""
    if isinstance(record, str):
        yield record
        return
    conversation = record.prompt if isinstance(record, Prompted) else record
    answers, values = (record.answers, record.values) if isinstance(record, Prompted) else ((), {})
    yield from (message.text for message in (*conversation.messages, *answers))
    yield from (json.dumps(tool, ensure_ascii=False) for tool in conversation.tools)
    yield from (value for value in values.values() if isinstance(value, str))


def with_system(record: AnyRecord, system: str) -> AnyRecord:
    """A record with a system text where it has none of its own."""

    def added(conversation: Conversation) -> Conversation:
        if conversation.system is not None:
            return conversation
        return replace(conversation, messages=[Message("system", system), *conversation.messages])

    return changed(record, added)


def conversations_of(record: Record) -> list[Conversation]:
    """The conversations of a record, each with an answer, for the proof that training sees what inference asks with."""
    if isinstance(record, Prompted):
        return record.answered() or [replace(record.prompt, messages=[*record.prompt.messages, Message("assistant", "OK.")])]
    return [record] if isinstance(record, Conversation) else []


def asked_of(record: Record) -> Conversation | None:
    """The conversation that a model can be asked with, and its answer where one is wanted; None of a document."""
    if isinstance(record, Prompted):
        return record.known()
    return record if isinstance(record, Conversation) else None

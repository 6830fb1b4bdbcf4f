"""Shortens the texts of examples that are too long: `dataset.cutoff_policy=proportional`.

Cutting ids would remove their end: the marker before the answer, its end token, whole turns. So texts are shortened instead, and rendered
and encoded again: every marker and terminator stays where the render puts it. Questions and answers lose the same share of their characters
above `LEAST`: a question its middle, an answer its end, which then isn't trained (`Message.cut`). If that is still too long, the oldest
rounds are removed. The system text and definitions of tools stay unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llmmod.data.rows.records import PromptRecord, Record, changed
from llmmod.render.conversation import Conversation, Message

LEAST = 16  # characters of each message that are kept
TRIES = 4  # encodings of one example; each is closer to the limit

Encode = Callable[[Sequence[Any]], list[Any]]
Size = Callable[[Any], int]


@dataclass
class _Attempt:
    """The state of shortening a record.

    Args:
        record: the record, or its remaining rounds.
        length: tokens with `share` of its texts, still too long.
        share: of the texts, 0 to 1.
        least: tokens of its example with the shortest texts.
        example: the longest that fits, or None.
    """

    record: Any
    length: int
    share: float = 1.0
    least: int = 0
    example: Any = None

    def next_share(self, limit: int) -> float:
        """The share that reaches the limit if the number of tokens is linear in it; slightly less from the second try on."""
        return self.share * (limit - self.least) / max(1, self.length - self.least) * (1.0 if self.share == 1.0 else 0.97)

    def take(self, share: float, example: Any, length: int, limit: int) -> bool:
        """Store the example if it fits, else its length; returns whether to stop."""
        if length <= limit:
            self.example = example
            return True
        self.share, self.length = share, length
        return False


def fit(records: Sequence[Any], lengths: Sequence[int], limit: int, encode: Encode, size: Size | None = None) -> list[Any]:
    """Each record's example with at most `limit` tokens, or the number of tokens it needs if that is impossible.

    Args:
        records: with one example each, all of them too long.
        lengths: their tokens.
        limit: tokens.
        encode: records -> their examples.
        size: example -> tokens; None: the length of its `input_ids`.
    """
    size = size or _tokens
    attempts = [_Attempt(record, length) for record, length in zip(records, lengths, strict=True)]
    _find_shortest(attempts, limit, encode, size)
    trying = [attempt for attempt in attempts if attempt.example is not None]
    for _ in range(TRIES):
        shares = [attempt.next_share(limit) for attempt in trying]
        examples = encode([_with_share(attempt.record, share) for attempt, share in zip(trying, shares, strict=True)])
        tried = zip(trying, shares, examples, strict=True)
        trying = [attempt for attempt, share, example in tried if not attempt.take(share, example, size(example), limit)]
    return [attempt.least if attempt.example is None else attempt.example for attempt in attempts]


def _find_shortest(attempts: Sequence[_Attempt], limit: int, encode: Encode, size: Size) -> None:
    """Set the shortest example of each; if it is still too long, remove its oldest rounds, all but the last if necessary."""
    trying = list(attempts)
    while trying:
        examples = encode([_with_share(attempt.record, 0) for attempt in trying])
        for attempt, example in zip(trying, examples, strict=True):
            attempt.least = size(example)
            attempt.example = example if attempt.least <= limit else None
        trying = [attempt for attempt in trying if attempt.example is None and _rounds(attempt.record) > 1]
        for attempt in trying:
            rounds = _rounds(attempt.record)
            drop = rounds - max(1, min(rounds - 1, rounds * limit // attempt.least))
            attempt.record = changed(attempt.record, partial(without_oldest, count=drop))


def _with_share(record: Any, share: float) -> Any:
    return changed(record, partial(shortened, share=share))


def _tokens(example: Any) -> int:
    return len(example.input_ids)


def shortened(conversation: Conversation, share: float) -> Conversation:
    """The conversation with `share`, 0 to 1, of the characters above `LEAST` in each question and answer."""
    return replace(conversation, messages=[_shortened(message, share) for message in conversation.messages])


def _shortened(message: Message, share: float) -> Message:
    text = message.content
    length = len(message.reasoning) + len(text)
    kept = LEAST + int((length - LEAST) * share)
    if message.role == "system" or length <= kept:
        return message
    if message.role == "assistant":
        thoughts = message.reasoning[:kept]
        return replace(message, reasoning=thoughts, content=text[: kept - len(thoughts)], cut=True)
    tail = kept // 2
    return replace(message, content=text[: kept - tail] + text[length - tail :])


def ends_kept(conversation: Conversation) -> Conversation:
    """The same texts, not marked as cut."""
    return replace(conversation, messages=[replace(message, cut=False) for message in conversation.messages])


def without_oldest(conversation: Conversation, count: int) -> Conversation:
    """The conversation without its `count` oldest rounds, at least 1: each is an answer and the turns between it and the one before."""
    first = 0 if conversation.system is None else 1
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    start = answers[count - 1] + 1
    return replace(conversation, messages=[*conversation.messages[:first], *conversation.messages[start:]])


def _rounds(record: Record) -> int:
    """The number of answers, with the one that follows a prompt."""
    conversation = record.prompt if isinstance(record, PromptRecord) else record
    assert isinstance(conversation, Conversation), "a document is never shortened"
    return sum(message.role == "assistant" for message in conversation.messages) + isinstance(record, PromptRecord)


def separate_rounds(conversation: Conversation) -> list[Conversation]:
    """A conversation for each answer that may be trained: the system text, the question and the answer."""
    system = list(conversation.messages[:1]) if conversation.system is not None else []
    rounds: list[Conversation] = []
    asked: list[Message] = []
    for message in conversation.messages[len(system) :]:
        asked.append(message)
        if message.role == "assistant":
            rounds += [replace(conversation, messages=[*system, *asked])] if message.train else []
            asked = []
    return rounds

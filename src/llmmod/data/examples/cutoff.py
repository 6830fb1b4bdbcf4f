"""Examples that are too long, made to fit by shortening what was said: `dataset.cutoff_policy=proportional`.

Cutting ids takes away whatever stands at their end: the marker where the answer begins, the token that ends it, whole turns. So texts are
shortened instead, and written and encoded again: every marker and terminator is where the render puts it. Questions and answers give up the
same share of what they have above `LEAST`; of a question the middle goes, of an answer the end, which then isn't trained (`Message.cut`).
Where even that is too long, the oldest rounds go. The system text and definitions of tools are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llmmod.data.rows.records import PromptRecord, Record, changed
from llmmod.render.conversation import Conversation, Message

LEAST = 16  # characters of each message that are kept
TRIES = 4  # encodings of one example; each comes closer to the limit

Encode = Callable[[Sequence[Any]], list[Any]]
Size = Callable[[Any], int]


@dataclass
class _Attempt:
    """A record on its way to fit.

    Args:
        record: whole, or what is left of it.
        least: tokens of its example with every text at its shortest.
        share: of its texts, with which it is still too long, at
        length: tokens.
        example: the longest that fits; None: none does.
    """

    record: Any
    length: int
    share: float = 1.0
    least: int = 0
    example: Any = None

    def next_share(self, limit: int) -> float:
        """The share that reaches the limit if tokens grow evenly with it; a little less from the second try on."""
        return self.share * (limit - self.least) / max(1, self.length - self.least) * (1.0 if self.share == 1.0 else 0.97)

    def take(self, share: float, example: Any, length: int, limit: int) -> bool:
        """Keep the example if it fits; else remember how long it is."""
        if length <= limit:
            self.example = example
            return True
        self.share, self.length = share, length
        return False


def fit(records: Sequence[Any], lengths: Sequence[int], limit: int, encode: Encode, size: Size | None = None) -> list[Any]:
    """Each record's example in at most `limit` tokens, or the tokens it needs at least where that can't be.

    Args:
        records: of one example each, all of them too long.
        lengths: their tokens.
        limit: tokens.
        encode: records -> their examples.
        size: tokens of an example; None: of its `input_ids`.
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
    """Set the shortest example of each; one that is too long even so gives up its oldest rounds, all but the last if need be."""
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
    """The conversation with `share`, 0 to 1, of what each question and answer has above `LEAST` characters."""
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
    """The same texts as if none had been cut off."""
    return replace(conversation, messages=[replace(message, cut=False) for message in conversation.messages])


def without_oldest(conversation: Conversation, count: int) -> Conversation:
    """The conversation without its `count` oldest rounds, at least 1: each an answer and what stands between it and the one before."""
    first = 0 if conversation.system is None else 1
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    start = answers[count - 1] + 1
    return replace(conversation, messages=[*conversation.messages[:first], *conversation.messages[start:]])


def _rounds(record: Record) -> int:
    """Answers, and the one that a prompt asks for."""
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

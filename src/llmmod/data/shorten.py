"""Examples that are too long, made to fit by shortening what was said: `dataset.cutoff_policy=proportional`.

Cutting ids takes away whatever stands at their end: the marker where the answer begins, the token that ends it, whole turns. So texts are
shortened instead, and written and encoded again: every marker and terminator is where the render puts it. Questions and answers give up the
same share of what they have above `LEAST`; of a question the middle goes, of an answer the end. Where even that is too long, the oldest
rounds go. The system text and definitions of tools are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llmmod.render.conversation import Conversation, Message
from llmmod.render.encode import Encoded

LEAST = 16  # characters of each message that are kept
TRIES = 4  # encodings of one example; each comes closer to the limit

_NOTHING = Encoded([], [])
Encode = Callable[[Sequence[Conversation]], list[Encoded]]


@dataclass
class _Attempt:
    """A conversation on its way to fit.

    Args:
        conversation: whole, or what is left of it.
        shortest: its example with every text at its shortest.
        share: of its texts, with which it is still too long, at
        length: tokens.
        example: the longest that fits; None: none does.
    """

    conversation: Conversation
    length: int
    share: float = 1.0
    shortest: Encoded = _NOTHING
    example: Encoded | None = None

    def next_share(self, limit: int) -> float:
        """The share that reaches the limit if tokens grow evenly with it; a little less from the second try on."""
        least = len(self.shortest.input_ids)
        return self.share * (limit - least) / max(1, self.length - least) * (1.0 if self.share == 1.0 else 0.97)

    def take(self, share: float, example: Encoded, limit: int) -> bool:
        """Keep the example if it fits; else remember how long it is."""
        if len(example.input_ids) <= limit:
            self.example = example
            return True
        self.share, self.length = share, len(example.input_ids)
        return False


def fit(conversations: Sequence[Conversation], lengths: Sequence[int], limit: int, encode: Encode) -> list[Encoded | int]:
    """Each conversation's example in at most `limit` tokens, or the tokens it needs at least where that can't be.

    Args:
        conversations: of one example each, all of them too long.
        lengths: their tokens.
        limit: tokens.
        encode: conversations -> their examples.
    """
    attempts = [_Attempt(conversation, length) for conversation, length in zip(conversations, lengths, strict=True)]
    _find_shortest(attempts, limit, encode)
    trying = [attempt for attempt in attempts if attempt.example is not None]
    for _ in range(TRIES):
        shares = [attempt.next_share(limit) for attempt in trying]
        examples = encode([shortened(attempt.conversation, share) for attempt, share in zip(trying, shares, strict=True)])
        fitted = [attempt.take(share, example, limit) for attempt, share, example in zip(trying, shares, examples, strict=True)]
        trying = [attempt for attempt, fits in zip(trying, fitted, strict=True) if not fits]
    return [len(attempt.shortest.input_ids) if attempt.example is None else attempt.example for attempt in attempts]


def _find_shortest(attempts: Sequence[_Attempt], limit: int, encode: Encode) -> None:
    """Set the shortest example of each; one that is too long even so gives up its oldest rounds, all but the last if need be."""
    trying = list(attempts)
    while trying:
        examples = encode([shortened(attempt.conversation, 0) for attempt in trying])
        for attempt, example in zip(trying, examples, strict=True):
            attempt.shortest = example
            attempt.example = example if len(example.input_ids) <= limit else None
        trying = [attempt for attempt in trying if attempt.example is None and _rounds(attempt.conversation) > 1]
        for attempt in trying:
            rounds = _rounds(attempt.conversation)
            keep = max(1, min(rounds - 1, rounds * limit // len(attempt.shortest.input_ids)))
            attempt.conversation = without_oldest(attempt.conversation, rounds - keep)


def shortened(conversation: Conversation, share: float) -> Conversation:
    """The conversation with `share`, 0 to 1, of what each question and answer has above `LEAST` characters."""
    return replace(conversation, messages=[_shortened(message, share) for message in conversation.messages])


def _shortened(message: Message, share: float) -> Message:
    text = message.content
    if message.role == "system" or len(text) <= LEAST:
        return message
    kept = LEAST + int((len(text) - LEAST) * share)
    tail = 0 if message.role == "assistant" else kept // 2
    return replace(message, content=text[: kept - tail] + text[len(text) - tail :])


def without_oldest(conversation: Conversation, count: int) -> Conversation:
    """The conversation without its `count` oldest rounds, at least 1: each an answer and what stands between it and the one before."""
    first = 0 if conversation.system is None else 1
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    start = answers[count - 1] + 1
    return replace(conversation, messages=[*conversation.messages[:first], *conversation.messages[start:]])


def _rounds(conversation: Conversation) -> int:
    return sum(message.role == "assistant" for message in conversation.messages)


def rounds_apart(conversation: Conversation) -> list[Conversation]:
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

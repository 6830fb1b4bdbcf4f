"""The turns of a conversation, as many of the latest as the model can attend to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from llmmod.render.conversation import Conversation, Message


class QuestionTooLongError(Exception):
    """A question that doesn't fit even alone; carries its prompt's `tokens`."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


@dataclass
class Turns:
    """A conversation in progress that forgets its oldest turns where it has to.

    Args:
        encode: a conversation that ends with a question -> the prompt's token ids.
        limit: tokens a prompt may have; None: no limit.
        system: the system text, kept whatever is forgotten; None: the render's.
        keep: whether earlier turns are part of the next prompt.
    """

    encode: Callable[[Conversation], list[int]]
    limit: int | None = None
    system: str | None = None
    keep: bool = True
    _turns: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> tuple[list[int], int]:
        """The prompt's token ids, and how many of the oldest turns were forgotten for them to fit.

        Raises:
            QuestionTooLongError: the question alone has more tokens than fit; nothing was forgotten.
        """
        for forgotten in range(len(self._turns) + 1):
            ids = self.encode(self._conversation(self._turns[forgotten:], question))
            if self.limit is None or len(ids) <= self.limit:
                del self._turns[:forgotten]
                return ids, forgotten
        raise QuestionTooLongError(len(ids))

    def answered(self, question: str, answer: str) -> None:
        """Remember a turn, if turns are kept."""
        if self.keep:
            self._turns.append((question, answer))

    def clear(self) -> None:
        """Forget every turn."""
        self._turns.clear()

    def _conversation(self, turns: list[tuple[str, str]], question: str) -> Conversation:
        messages = [] if self.system is None else [Message("system", self.system)]
        for asked, answer in turns:
            messages += [Message("user", asked), Message("assistant", answer)]
        return Conversation([*messages, Message("user", question)])

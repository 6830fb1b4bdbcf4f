"""A prompt's ids and those of the answers to it, apart; what gives way where they are too long together."""

from __future__ import annotations

from typing import NamedTuple

from llmmod.schema.base import CutoffPolicy


class Answered(NamedTuple):
    """A prompt and its answers in tokens; the prompt with each answer is what supervised fine-tuning would see."""

    prompt: list[int]
    answers: list[list[int]]  # each with its terminator

    @property
    def tokens(self) -> int:
        """Tokens of the prompt with the longest of the answers."""
        return len(self.prompt) + max(map(len, self.answers), default=0)


def cut_answered(example: Answered, limit: int, policy: CutoffPolicy) -> Answered | None:
    """The example in at most `limit` tokens with each answer: of the prompt the beginning goes (left), or of the answers the end (right).

    With `left`, answers that leave the prompt no room lose their ends too. None where no answer, or nothing of the prompt, would be left.
    """
    prompt, answers = example
    if policy == CutoffPolicy.left:
        kept = max(1, limit - max(map(len, answers), default=0))
        prompt = prompt[-min(kept, limit) :]
    room = limit - len(prompt)
    if room < 0 or (answers and room == 0):
        return None
    return Answered(prompt, [answer[:room] for answer in answers])

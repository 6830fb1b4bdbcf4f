"""Reward functions without a reward model. Each is called like trl's: with columns of a batch, by name.

Your own function, in a file of your working directory, is named in the same way: `training.reward.mine._target_=my_module.my_function`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from llmmod.metrics import words


def overlap(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float]:
    """F1 of the words of each completion and of its row's answer, 0 to 1; 0 if the row doesn't have an answer.

    Args:
        completions: texts, or conversations whose last message has the text.
        answer: the column of that name.
        columns: what else a reward function is given.
    """
    rewards = []
    for completion, wanted in zip(completions, answer, strict=True):
        text = completion if isinstance(completion, str) else str(completion[-1]["content"])
        found, expected = Counter(words(text)), Counter(words(wanted))
        total = found.total() + expected.total()
        rewards.append(2 * (found & expected).total() / total if total else 0.0)
    return rewards


def brevity(completion_ids: Sequence[Sequence[int]], limit: int = 64, **columns: Any) -> list[float]:
    """The share of `limit` tokens that each completion doesn't use, from 1 (an empty one) to 0 (`limit` tokens or more).

    With another reward, it prevents that longer completions score higher.

    Args:
        completion_ids: terminators included.
        limit: tokens.
        columns: what else a reward function is given.
    """
    return [max(0.0, 1 - len(ids) / limit) for ids in completion_ids]

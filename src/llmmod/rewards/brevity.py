"""How short an answer is: a rule that keeps another reward from being earned by length, or one to try a training with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def brevity(completion_ids: Sequence[Sequence[int]], limit: int = 64, **columns: Any) -> list[float]:
    """The share of `limit` tokens that each completion leaves, 1 of none to 0 of as many or more.

    Args:
        completion_ids: terminators included.
        limit: tokens.
        columns: what else a reward function is given.
    """
    return [max(0.0, 1 - len(ids) / limit) for ids in completion_ids]

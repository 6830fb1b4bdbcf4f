"""What is made of answers that are ranked, best first: pairs to compare, or answers judged good or bad.

Ouyang et al. 2022, section 3.5, train a reward model on every pair of a prompt, in one batch. Here pairs are examples of their own, and a
weight lets each prompt count as much as one with a single pair.
"""

from __future__ import annotations

from itertools import combinations, pairwise

from llmmod.schema.base import Ranked


def ranked_pairs(count: int, which: Ranked) -> list[tuple[int, int]]:
    """The pairs of ranked answers, each as the places of the better and the worse one.

    Args:
        count: answers, at least two.
        which: `dataset.ranked`.
    """
    if which == Ranked.adjacent:
        return list(pairwise(range(count)))
    if which == Ranked.ends:
        return [(0, count - 1)]
    if which == Ranked.first_two:
        return [(0, 1)]
    return list(combinations(range(count), 2))


def ranked_labels(count: int, which: Ranked) -> list[tuple[int, bool]]:
    """The answers that the pairs judge, as place and label: good where they win more of their pairs than they lose, else bad.

    One that wins as many as it loses is left out: the middle one of an odd number with `all`, all but the ends with `adjacent`.
    """
    wins = dict.fromkeys(range(count), 0)
    for better, worse in ranked_pairs(count, which):
        wins[better] += 1
        wins[worse] -= 1
    return [(place, balance > 0) for place, balance in wins.items() if balance]

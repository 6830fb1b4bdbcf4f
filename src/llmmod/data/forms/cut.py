"""Examples that are too long, cut at an end: `dataset.cutoff_policy` right and left. `shorten` does it for proportional."""

from __future__ import annotations

from collections.abc import Sequence

from llmmod.render.encode import IGNORED, Encoded


def is_trained(labels: Sequence[int]) -> bool:
    """Whether anything is learnt from these labels: the first is never predicted, since nothing stands before it."""
    later = labels[1:]
    return later.count(IGNORED) < len(later)


def cut_right(example: Encoded, limit: int) -> Encoded:
    """The first `limit` tokens."""
    return Encoded(example.input_ids[:limit], example.labels[:limit])


def cut_left(example: Encoded, limit: int) -> Encoded:
    """The last `limit` tokens up to the last label; what follows it has nothing to train."""
    stop = ends_at(example)
    start = max(0, stop - limit)
    return Encoded(example.input_ids[start:stop], example.labels[start:stop])


def ends_at(example: Encoded) -> int:
    """The position after the last label, 0 where there is none."""
    return next((at for at in range(len(example.labels), 0, -1) if example.labels[at - 1] != IGNORED), 0)

"""What a model sees of a row: sequences of ids with their labels, one of an example, two of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from llmmod.render.encode import IGNORED


class Seen(NamedTuple):
    """A sequence of ids.

    Args:
        part: what of the row it is: `chosen`, `rejected`, `wanted`, `unwanted`, `prompt`; empty where it is all of it.
        input_ids: what the model sees.
        labels: what is trained of it, -100 elsewhere; of answers that are compared or judged, their tokens.
    """

    part: str
    input_ids: list[int]
    labels: list[int]


def seen(row: Mapping[str, Any]) -> list[Seen]:
    """The sequences of a row of any kind; of a packed row, each example."""
    if "prompt_ids" not in row:
        ends = pairwise([0, *accumulate(row.get("seq_lengths") or [len(row["input_ids"])])])
        return [Seen("", row["input_ids"][start:end], row["labels"][start:end]) for start, end in ends]
    if "chosen_ids" in row:
        return [_answered(name, row, f"{name}_ids") for name in ("chosen", "rejected")]
    if "completion_ids" in row:
        return [_answered("wanted" if row["label"] else "unwanted", row, "completion_ids")]
    return [Seen("prompt", row["prompt_ids"], [IGNORED] * len(row["prompt_ids"]))]


def _answered(part: str, row: Mapping[str, Any], name: str) -> Seen:
    prompt, answer = row["prompt_ids"], row[name]
    return Seen(part, [*prompt, *answer], [IGNORED] * len(prompt) + list(answer))

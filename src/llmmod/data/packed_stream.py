"""Several examples a row, from a stream of examples: best fit among those that are held at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from llmmod.data.packing import pack

WINDOW = 1000  # examples held: with as many, alpaca's fill 99 % of rows of 1,024
FULL = 0.97  # the part of a row from which on it isn't held back for better company

Example = dict[str, Any]


def packed(examples: Iterable[Example], capacity: int) -> Iterator[Example]:
    """Rows of at most `capacity` tokens: `input_ids`, `labels`, and `seq_lengths`, the tokens of each example in the row.

    Every example is in a row; those of a row that isn't full are tried again with the next ones, until there are none.
    """
    held: list[Example] = []
    for example in examples:
        held.append(example)
        if len(held) >= WINDOW:
            rows = _rows(held, capacity)
            full = [row for row in rows if _tokens(row) >= FULL * capacity]
            ready = full or rows  # where no examples go well together, waiting helps nobody
            yield from map(_joined, ready)
            held = [] if not full else [one for row in rows if _tokens(row) < FULL * capacity for one in row]
    yield from map(_joined, _rows(held, capacity))


def _rows(examples: Sequence[Example], capacity: int) -> list[list[Example]]:
    rows: dict[int, list[Example]] = {}
    for row, example in zip(pack([len(example["input_ids"]) for example in examples], capacity), examples, strict=True):
        rows.setdefault(row, []).append(example)
    return list(rows.values())


def _tokens(row: Sequence[Example]) -> int:
    return sum(len(example["input_ids"]) for example in row)


def _joined(row: Sequence[Example]) -> Example:
    joined = {name: list(chain.from_iterable(example[name] for example in row)) for name in ("input_ids", "labels")}
    return {**joined, "seq_lengths": [len(example["input_ids"]) for example in row]}

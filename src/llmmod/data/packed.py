"""A dataset whose rows are several examples each; it holds which, and takes their tokens from the examples when a row is asked for."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
from datasets import Dataset

from llmmod.data.lengths import lengths
from llmmod.data.packing import pack
from llmmod.data.splits import Splits


class Packed:
    """Rows of at most `capacity` tokens: columns `input_ids`, `labels`, and `seq_lengths`, the tokens of each example in the row.

    It holds a dozen bytes an example: the examples stay where they are, on the disk or in memory.

    Args:
        examples: columns `input_ids` and `labels`.
        capacity: tokens of a row.

    Raises:
        ValueError: an example has more tokens than a row takes.
    """

    column_names = ("input_ids", "labels", "seq_lengths")

    def __init__(self, examples: Dataset, capacity: int) -> None:
        tokens = array("q", lengths(examples))
        rows = np.asarray(pack(tokens, capacity))
        self.examples, self.capacity = examples, capacity
        self.tokens = sum(tokens)
        self._order = np.argsort(rows, kind="stable")  # the examples, row by row
        self._ends = np.cumsum(np.bincount(rows))  # of each row, in that order
        self._lengths = np.bincount(rows, weights=tokens).astype(np.int64)

    @property
    def fill(self) -> float:
        """The part of all positions that holds tokens."""
        return self.tokens / (len(self) * self.capacity)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return list(map(int, self._lengths))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        return self.__getitems__([row])[0]

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        return map(self.__getitem__, range(len(self)))

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, list[int]]]:
        """Several rows at once, as torch's data loader asks for them."""
        numbers = [self.numbers(row) for row in rows]
        read: dict[str, list[list[int]]] = self.examples[list(chain.from_iterable(numbers))]
        places = [0, *accumulate(len(of_row) for of_row in numbers)]
        return [_joined(read, slice(*place)) for place in pairwise(places)]

    def numbers(self, row: int) -> list[int]:
        """The examples that a row is made of, in their order.

        Raises:
            IndexError: there is no such row.
        """
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        start = self._ends[row - 1] if row else 0
        return [int(number) for number in self._order[start : self._ends[row]]]


def _joined(examples: dict[str, Any], place: slice) -> dict[str, list[int]]:
    row = {name: list(chain.from_iterable(examples[name][place])) for name in ("input_ids", "labels")}
    return row | {"seq_lengths": [len(ids) for ids in examples["input_ids"][place]]}


def capacity_of(train: Any) -> int | None:
    """Tokens of a row that several examples share, streamed or not; None where each example has a row of its own."""
    capacity: int | None = getattr(train, "capacity", None)
    return capacity


def pack_splits(splits: Splits, cutoff_len: int) -> Splits:
    """The same data with the training examples packed into rows of `cutoff_len` tokens; those to validate with stay as they are."""
    packed = Packed(splits.train, cutoff_len)
    report = dataclasses.replace(splits.report, packed_rows=len(packed), fill=packed.fill)
    return dataclasses.replace(splits, train=packed, report=report)

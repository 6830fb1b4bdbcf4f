"""How many tokens each example has, without reading the tokens.

Which examples share a row: best fit, longest first, in time linear in their number.

Each example goes where the least room is left beside it (best-fit decreasing; Johnson et al. 1974: at most 11/9 of the fewest rows, and
with as many examples as a training set has, next to none of the room is lost). Rows with the same room are one bucket, and the bits of
one integer say which buckets have a row, so that the best is found without looking at the rows: 10,000 examples in 10 ms.

A dataset whose rows are several examples each; it holds which, and takes their tokens from the examples when a row is asked for.

Several examples a row, from a stream of examples: best fit among those that are held at a time.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset

from llmmod.data.dataset.splits import Splits

_ROWS = 10_000


def lengths(dataset: Any) -> list[int]:
    """Tokens of each example, in all its columns of ids: from where an Arrow table's lists end; of any other dataset by counting."""
    known: list[int] | None = getattr(dataset, "lengths", None)
    if known is not None:
        return known
    if not isinstance(dataset, Dataset):
        return [len(example["input_ids"]) for example in dataset]
    columns = [name for name in dataset.column_names if name.endswith("_ids")]
    batches = dataset.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS)
    counts = (zip(*(pc.list_value_length(batch[name]).to_pylist() for name in columns), strict=True) for batch in batches)
    return [sum(found) for batch in counts for found in batch]


def pack(lengths: Sequence[int], capacity: int) -> array[int]:
    """The number of each example's row; rows are numbered in the order in which their first examples stand.

    Nothing is left out and nothing is cut. The same lengths give the same rows.

    Args:
        lengths: tokens of each example, from 1 to `capacity`.
        capacity: tokens of a row, at most.

    Raises:
        ValueError: an example has no token, or more than a row takes.
    """
    outside = next((length for length in lengths if not 0 < length <= capacity), None)
    if outside is not None:
        raise ValueError(f"an example of {outside} tokens doesn't fit a row of {capacity}")
    rows = array("q", bytes(8 * len(lengths)))
    with_room: defaultdict[int, list[int]] = defaultdict(list)  # tokens of room -> rows
    rooms = opened = 0  # the bit 1 << room is set where with_room[room] isn't empty
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[index]
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, opened
            opened += 1
        rows[index] = row
        if room > length:
            with_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return _in_order(rows, opened)


def _in_order(rows: array[int], count: int) -> array[int]:
    """The same rows, numbered by their first examples."""
    names = array("q", [-1]) * count
    next_name = 0
    for place, row in enumerate(rows):
        if names[row] < 0:
            names[row], next_name = next_name, next_name + 1
        rows[place] = names[row]
    return rows


class PackedDataset:
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
    packed = PackedDataset(splits.train, cutoff_len)
    report = dataclasses.replace(splits.report, packed_rows=len(packed), fill=packed.fill)
    return dataclasses.replace(splits, train=packed, report=report)


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
            yield from map(_joined_of_packed_stream, ready)
            held = [] if not full else [one for row in rows if _tokens(row) < FULL * capacity for one in row]
    yield from map(_joined_of_packed_stream, _rows(held, capacity))


def _rows(examples: Sequence[Example], capacity: int) -> list[list[Example]]:
    rows: dict[int, list[Example]] = {}
    for row, example in zip(pack([len(example["input_ids"]) for example in examples], capacity), examples, strict=True):
        rows.setdefault(row, []).append(example)
    return list(rows.values())


def _tokens(row: Sequence[Example]) -> int:
    return sum(len(example["input_ids"]) for example in row)


def _joined_of_packed_stream(row: Sequence[Example]) -> Example:
    joined = {name: list(chain.from_iterable(example[name] for example in row)) for name in ("input_ids", "labels")}
    return {**joined, "seq_lengths": [len(example["input_ids"]) for example in row]}

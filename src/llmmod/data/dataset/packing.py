"""Packing several examples into a row: the assignment of examples to rows, and the packed dataset.

Best fit, longest first, in linear time: each example goes to the row where it leaves the least room (best-fit decreasing; Johnson et al.
1974: at most 11/9 of the fewest rows; with the number of examples of a training set, almost no room is lost). Rows with the same room are
one bucket, and the bits of one integer mark the buckets that aren't empty, so that the best row is found without a search: 10,000
examples in 10 ms. Examples of a stream are packed within a window.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset

WINDOW = 1000  # examples of a stream in the window: with these, alpaca's examples fill 99 % of rows of 1,024
FULL = 0.97  # a row that is filled so far doesn't wait for a better fit
_ROWS = 10_000  # counted at a time

Example = dict[str, Any]


def lengths(dataset: Any) -> list[int]:
    """Tokens of each example in all its columns of ids: from the offsets of an Arrow table; counted for any other dataset."""
    known: list[int] | None = getattr(dataset, "lengths", None)
    if known is not None:
        return known
    if not isinstance(dataset, Dataset):
        return [len(example["input_ids"]) for example in dataset]
    columns = [name for name in dataset.column_names if name.endswith("_ids")]
    batches = dataset.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS)
    counts = (zip(*(pc.list_value_length(batch[name]).to_pylist() for name in columns), strict=True) for batch in batches)
    return [sum(found) for batch in counts for found in batch]


def capacity_of(train: Any) -> int | None:
    """The capacity of packed rows in tokens, streamed or not; None if the data isn't packed."""
    capacity: int | None = getattr(train, "capacity", None)
    return capacity


def pack(lengths: Sequence[int], capacity: int) -> array[int]:
    """The number of each example's row; rows are numbered in the order of their first examples.

    Every example is in a row, uncut. The same lengths give the same rows.

    Args:
        lengths: tokens of each example, from 1 to `capacity`.
        capacity: maximum tokens of a row.

    Raises:
        ValueError: an example is empty, or longer than a row.
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
    names = array("q", [-1]) * opened  # of each row by its first example
    next_name = 0
    for place, row in enumerate(rows):
        if names[row] < 0:
            names[row], next_name = next_name, next_name + 1
        rows[place] = names[row]
    return rows


class PackedDataset:
    """Rows of at most `capacity` tokens: columns `input_ids`, `labels`, and `seq_lengths`, the tokens of each example in the row.

    It needs a dozen bytes for each example: the examples stay on the disk or in memory until their row is read.

    Args:
        examples: columns `input_ids` and `labels`.
        capacity: tokens of a row.

    Raises:
        ValueError: an example is longer than a row.
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
        """The share of all positions that have tokens."""
        return self.tokens / (len(self) * self.capacity)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return list(map(int, self._lengths))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> Example:
        return self.__getitems__([row])[0]

    def __iter__(self) -> Iterator[Example]:
        return map(self.__getitem__, range(len(self)))

    def __getitems__(self, rows: Sequence[int]) -> list[Example]:
        """Several rows at once, for torch's data loader."""
        numbers = [self.numbers(row) for row in rows]
        read: dict[str, list[list[int]]] = self.examples[list(chain.from_iterable(numbers))]
        places = [0, *accumulate(len(of_row) for of_row in numbers)]
        return [_joined(read["input_ids"][start:end], read["labels"][start:end]) for start, end in pairwise(places)]

    def numbers(self, row: int) -> list[int]:
        """The numbers of a row's examples, in their order.

        Raises:
            IndexError: the row doesn't exist.
        """
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        start = self._ends[row - 1] if row else 0
        return [int(number) for number in self._order[start : self._ends[row]]]


def _joined(ids: Sequence[list[int]], labels: Sequence[list[int]]) -> Example:
    """The row of some examples."""
    return {
        "input_ids": list(chain.from_iterable(ids)),
        "labels": list(chain.from_iterable(labels)),
        "seq_lengths": [len(of_example) for of_example in ids],
    }


def pack_stream(examples: Iterable[Example], capacity: int) -> Iterator[Example]:
    """Rows as in `PackedDataset`, from a stream of examples.

    Every example is in a row; examples of a row that isn't full are packed again with the next ones, until the stream ends.
    """
    held: list[Example] = []
    for example in examples:
        held.append(example)
        if len(held) >= WINDOW:
            rows = _rows(held, capacity)
            full = [sum(len(one["input_ids"]) for one in row) >= FULL * capacity for row in rows]
            ready = full if any(full) else [True] * len(rows)  # if none of the rows is full, waiting doesn't help
            yield from (_row(row) for row, is_ready in zip(rows, ready, strict=True) if is_ready)
            held = [one for row, is_ready in zip(rows, ready, strict=True) if not is_ready for one in row]
    yield from map(_row, _rows(held, capacity))


def _rows(examples: Sequence[Example], capacity: int) -> list[list[Example]]:
    rows: dict[int, list[Example]] = {}
    for row, example in zip(pack([len(example["input_ids"]) for example in examples], capacity), examples, strict=True):
        rows.setdefault(row, []).append(example)
    return list(rows.values())


def _row(examples: Sequence[Example]) -> Example:
    return _joined([example["input_ids"] for example in examples], [example["labels"] for example in examples])

"""A dataset of examples from a stream of records, in one process or several.

Each batch is written to a file, and the dataset is that file, memory-mapped: memory doesn't grow with the rows. The cache of `datasets` is
not used: it decides by a hash of closures whether a result can be reused, and can be silently wrong.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from datasets.table import InMemoryTable, MemoryMappedTable

from llmmod.data.examples.tokenize import Counts, ExampleTokenizer, LocatedRecord
from llmmod.data.sources.reader import BadRows
from llmmod.errors import DataError, Problem

BATCH = 1000  # records rendered and encoded together
CHARACTERS = 4_000_000  # the same limit for documents


class Batch(NamedTuple):
    """The examples of some records."""

    table: pa.RecordBatch  # the columns of their example type
    per_record: list[int]  # examples of each record
    counts: Counts
    problems: list[Problem]  # of records that can't be trained on; an exception would lose its attributes between processes


class Built(NamedTuple):
    """The examples of all records."""

    dataset: Dataset  # the columns of their example type; ids are lists of int32
    per_record: list[int]  # examples of each record
    counts: Counts
    bad: BadRows  # records that can't be trained on


def build_dataset(
    rows: Iterable[LocatedRecord],
    example_tokenizer: ExampleTokenizer,
    *,
    path: Path | None = None,
    num_proc: int | None = None,
    skip: bool = False,
) -> Built:
    """The examples of all records, in their order.

    Args:
        rows: records with their locations.
        example_tokenizer: turns them into examples.
        path: the Arrow file they are written to and mapped from; None: they are kept in memory.
        num_proc: processes; None or 1: only this one.
        skip: whether records that can't be trained on are left out; otherwise the first is an error.

    Raises:
        DataError: a record can't be trained on.
    """
    made: Iterator[Batch] = (to_batch(example_tokenizer, batch) for batch in _batches(rows))
    if num_proc is not None and num_proc > 1:
        made = _in_processes(_batches(rows), example_tokenizer, num_proc)
    per_record: list[int] = []
    counts, bad = Counts(), BadRows()

    def tables() -> Iterator[pa.RecordBatch]:
        nonlocal counts
        for batch in made:
            if batch.problems and not skip:
                raise DataError(batch.problems[0])
            per_record.extend(batch.per_record)
            counts += batch.counts
            for problem in batch.problems:
                bad.add(DataError(problem))
            yield batch.table

    rows_made = longest = 0
    example_type = example_tokenizer.example_type
    output = pa.BufferOutputStream() if path is None else pa.OSFile(str(path), "wb")
    with output as sink, pa.ipc.new_stream(sink, example_type.schema) as writer:
        for table in example_type.arrange_tables(tables()):
            writer.write_batch(table)
            rows_made += table.num_rows
            longest = max(longest, pc.max(pc.list_value_length(table.column(0))).as_py() or 0)
    dataset = map_dataset(path) if path is not None else _dataset(InMemoryTable.from_buffer(sink.getvalue()))
    return Built(dataset, per_record, replace(counts, examples=rows_made, longest=counts.longest or longest), bad)


def map_dataset(path: Path, *, fingerprint: str | None = None) -> Dataset:
    """The dataset in an Arrow file, memory-mapped.

    Args:
        path: the file.
        fingerprint: of the dataset, for cached results of `datasets`; None: a new one.
    """
    return _dataset(MemoryMappedTable.from_file(str(path)), fingerprint)


def _dataset(table: InMemoryTable | MemoryMappedTable, fingerprint: str | None = None) -> Dataset:
    # It must be unique: `datasets` finds cached results by the fingerprint.
    return Dataset(table, fingerprint=fingerprint or generate_random_fingerprint())


def to_batch(example_tokenizer: ExampleTokenizer, rows: Sequence[LocatedRecord]) -> Batch:
    """The examples of some records, in a form that can be sent between processes."""
    records, example_type = example_tokenizer.tokenize(rows), example_tokenizer.example_type
    kept = [record.rows(example_type) for record in records]
    columns = [pa.array([row[column.name] for of_record in kept for row in of_record], column.type) for column in example_type.schema]
    table = pa.RecordBatch.from_arrays(columns, schema=example_type.schema)
    problems = [record.error.problem for record in records if record.error is not None]
    return Batch(table, [len(of_record) for of_record in kept], Counts.of(records, example_type), problems)


def _batches(rows: Iterable[LocatedRecord]) -> Iterator[list[LocatedRecord]]:
    """Batches of records to encode together. A document may be a book, so a batch also has a limit in characters."""
    batch: list[LocatedRecord] = []
    characters = 0
    for located in rows:
        batch.append(located)
        characters += len(located[1]) if isinstance(located[1], str) else 0
        if len(batch) >= BATCH or characters >= CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


_example_tokenizer: ExampleTokenizer | None = None  # in a worker process


def _in_processes(batches: Iterable[list[LocatedRecord]], example_tokenizer: ExampleTokenizer, count: int) -> Iterator[Batch]:
    """The batches in order; two per process are in progress, so that workers don't wait and memory doesn't grow."""
    # A forked worker has tokenizer and render already; if forking is unsafe, they are pickled once for each worker.
    context = get_context("fork" if sys.platform == "linux" else None)
    with _one_thread_each(), ProcessPoolExecutor(count, context, initializer=_start, initargs=(example_tokenizer,)) as pool:
        under_way: deque[Future[Batch]] = deque()
        for batch in batches:
            under_way.append(pool.submit(_work, batch))
            if len(under_way) >= 2 * count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _start(example_tokenizer: ExampleTokenizer) -> None:
    global _example_tokenizer
    _example_tokenizer = example_tokenizer


def _work(rows: list[LocatedRecord]) -> Batch:
    assert _example_tokenizer is not None, "a worker starts with _start"
    return to_batch(_example_tokenizer, rows)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep the Rust tokenizer of each process to one thread; its threads don't survive a fork."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})

"""Example types: from the records of a kind to texts to encode, and from their ids to a row of columns.

An example type has all differences between the kinds after a row is read. Encoding, cutting, counting and writing are the same for all.
This module has the types of language modelling; `answers` has those of prompts with answers.

A conversation is one example, or several if the render makes each answer an example. All tokens of a document are trained, and it ends
with the tokenizer's end token. Documents are joined into blocks of `cutoff_len` tokens, in which a document attends to those before it, as
in the training of GPT-2 and LLaMA; with `dataset.packing` each is separate. The end token is trained even if it is the padding token too:
a collator's mask marks padding. The first token of a row is never predicted, so a row has at least two tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from llmmod.config.schema.base import CutoffPolicy
from llmmod.data.examples.cutoff import separate_rounds
from llmmod.data.rows.records import RowError
from llmmod.errors import ConfigError, Problem
from llmmod.render.conversation import Conversation
from llmmod.render.encode import IGNORED, Encoded
from llmmod.render.segments import Segment, own_beginning

Texts = Sequence[Sequence[Segment]]  # of one example, each encoded separately
Ids = Any  # a numpy array of int32
IDS = pa.list_(pa.int32())
_LABELLED = pa.schema({"input_ids": IDS, "labels": IDS})
_BATCH = 1 << 20  # tokens of the rows that are written together


class Fitted(NamedTuple):
    """An example that was cut to fit."""

    tokens: Any
    end_lost: bool


class ExampleType(Protocol):
    """The type of the examples of a kind."""

    @property
    def plural(self) -> str:
        """The name of several examples of one record."""

    @property
    def schema(self) -> Any:
        """The Arrow schema of a row."""

    def segments(self, record: Any, render: Any, *, mask_prompt: bool) -> list[Texts]:
        """The texts of each example of a record."""

    def assemble(self, encoded: Sequence[Encoded]) -> Any:
        """An example's tokens; raises `RowError` if none would be trained."""

    def select(self, record: Any, index: int) -> Any:
        """The part of a record with only its `index`-th example."""

    def length(self, tokens: Any) -> int:
        """The number of tokens that must be at most `cutoff_len`."""

    def cut(self, tokens: Any, limit: int, policy: CutoffPolicy) -> Fitted | int:
        """The example cut at an end, or the number of tokens it needs at least."""

    def count(self, tokens: Any) -> tuple[int, int]:
        """The number of tokens, and of trained tokens."""

    def row(self, record: Any, tokens: Any, *, number: int = 0, of: int = 1) -> dict[str, Any]:
        """The values of an example's columns; it is the record's `number`-th possible example, and `of` of them are kept."""

    def arrange(self, rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """The rows for training, from the rows of the examples."""

    def arrange_tables(self, tables: Iterable[Any]) -> Iterable[Any]:
        """The same for Arrow's tables of rows."""

    def for_validation(self) -> ExampleType:
        """The type for held-out records, which doesn't leave out a partial row."""


class RowPerExample:
    """The part of an example type that gives each example its own row."""

    plural: str = "examples"

    def for_validation(self) -> Any:
        """The same type."""
        return self

    def arrange(self, rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """The rows themselves."""
        return rows

    def arrange_tables(self, tables: Iterable[Any]) -> Iterable[Any]:
        """The tables themselves."""
        return tables


@dataclass(frozen=True)
class Conversations(RowPerExample):
    """Conversations: ids and labels."""

    schema: Any = field(default=_LABELLED, repr=False)

    def segments(self, record: Conversation, render: Any, *, mask_prompt: bool) -> list[Texts]:
        """The render's examples: one, or one for each answer."""
        return [[segments] for segments in render.examples(record, mask_prompt=mask_prompt)]

    def assemble(self, encoded: Sequence[Encoded]) -> Encoded:
        """Ids and labels."""
        (example,) = encoded
        if not example.is_trained:
            raise RowError("all of its answers are masked, so it doesn't have trained tokens")
        return example

    def select(self, record: Conversation, index: int) -> Conversation:
        """One round, if each round is an example."""
        return separate_rounds(record)[index]

    def length(self, tokens: Encoded) -> int:
        """All tokens."""
        return len(tokens.input_ids)

    def cut(self, tokens: Encoded, limit: int, policy: CutoffPolicy) -> Fitted | int:
        """The first or the last tokens; they must have a label."""
        right = policy == CutoffPolicy.right
        kept = tokens.cut_right(limit) if right else tokens.cut_left(limit)
        return Fitted(kept, right and tokens.end > limit) if kept.is_trained else tokens.end

    def count(self, tokens: Encoded) -> tuple[int, int]:
        """All tokens, and those with a label."""
        return len(tokens.input_ids), len(tokens.input_ids) - tokens.labels.count(IGNORED)

    def row(self, record: Conversation, tokens: Encoded, *, number: int = 0, of: int = 1) -> dict[str, Any]:
        """`input_ids` and `labels`."""
        return tokens._asdict()


@dataclass(frozen=True)
class Documents:
    """Documents: ids that are also the labels.

    Args:
        size: maximum tokens of a row.
        eos: the token that ends a document.
        bos: the token that begins a document, or None.
        separate: whether each document has its own rows, in pieces if it is longer than a row.
        drop_last: whether the last block is left out if it isn't full.
    """

    size: int
    eos: int
    bos: int | None = None
    separate: bool = False
    drop_last: bool = False
    plural: str = "examples"
    schema: Any = field(default=_LABELLED, repr=False)

    @classmethod
    def of(cls, tokenizer: Any, *, size: int, separate: bool, drop_last: bool) -> Documents:
        """The type with a tokenizer's begin and end tokens.

        Raises:
            ConfigError: the tokenizer doesn't have an end token.
        """
        if tokenizer.eos_token_id is None:
            found = "not set for this tokenizer, so the ends of documents would not be marked"
            raise ConfigError(Problem("tokenizer.kwargs.eos_token", found, do="Set it to the token that ends a text"))
        return cls(size, int(tokenizer.eos_token_id), own_beginning(tokenizer), separate, drop_last)

    def segments(self, record: str, render: Any, *, mask_prompt: bool) -> list[Texts]:
        """The text as it is; a render doesn't add to it."""
        return [[[Segment(record, None, True)]]]

    def assemble(self, encoded: Sequence[Encoded]) -> Encoded:
        """The text's ids between the tokens that begin and end a document."""
        ids = [*([] if self.bos is None else [self.bos]), *encoded[0].input_ids, self.eos]
        return Encoded(ids, ids)

    def select(self, record: str, index: int) -> str:
        """The document, which makes one example."""
        return record

    def length(self, tokens: Encoded) -> int:
        """0: a document is never too long, since it may have several rows."""
        return 0

    def cut(self, tokens: Encoded, limit: int, policy: CutoffPolicy) -> Fitted | int:
        """The document as it is."""
        return Fitted(tokens, end_lost=False)

    def count(self, tokens: Encoded) -> tuple[int, int]:
        """All tokens, which are all trained."""
        return len(tokens.input_ids), len(tokens.input_ids)

    def row(self, record: str, tokens: Encoded, *, number: int = 0, of: int = 1) -> dict[str, Any]:
        """`input_ids` and `labels`, of a document."""
        return {"input_ids": tokens.input_ids, "labels": tokens.input_ids}

    def for_validation(self) -> Documents:
        """The same, with the last block."""
        return replace(self, drop_last=False)

    def arrange(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows of at most `size` tokens."""
        for ids in self._rows(np.asarray(row["input_ids"], np.int32) for row in rows):
            found = ids.tolist()
            yield {"input_ids": found, "labels": found}

    def arrange_tables(self, tables: Iterable[Any]) -> Iterator[Any]:
        """The same for Arrow's tables of rows, `_BATCH` tokens or more in each that is written."""
        batch: list[Ids] = []
        tokens = 0
        for ids in self._rows(_documents(tables)):
            batch.append(ids)
            tokens += len(ids)
            if tokens >= _BATCH:
                yield _table(batch)
                batch, tokens = [], 0
        if batch:
            yield _table(batch)

    def _rows(self, documents: Iterable[Ids]) -> Iterator[Ids]:
        if self.separate:
            return (piece for ids in documents for piece in pieces(ids, self.size))
        return join(documents, self.size, drop_last=self.drop_last)


def _documents(tables: Iterable[Any]) -> Iterator[Ids]:
    for table in tables:
        column = table.column("input_ids")
        ids, offsets = column.values.to_numpy(), column.offsets.to_numpy()
        yield from (ids[start:end] for start, end in pairwise(offsets))


def _table(rows: Sequence[Ids]) -> Any:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))
    return pa.RecordBatch.from_arrays([column, column], schema=_LABELLED)


def join(documents: Iterable[Ids], size: int, *, drop_last: bool = False) -> Iterator[Ids]:
    """Blocks of `size` tokens of consecutive documents.

    Args:
        documents: their ids; an array may have several documents.
        size: tokens.
        drop_last: whether a partial block at the end is left out; otherwise it is kept if it has at least two tokens.
    """
    rest = np.empty(0, np.int32)
    for ids in documents:
        rest = np.concatenate([rest, np.asarray(ids, np.int32)])
        stop = len(rest) // size * size
        yield from (rest[start : start + size] for start in range(0, stop, size))
        rest = rest[stop:]
    if len(rest) > 1 and not drop_last:
        yield rest


def pieces(document: Ids, size: int) -> Iterator[Ids]:
    """A document in pieces of `size` tokens. The last piece is shorter; instead of a single token it has two."""
    ends = [*range(size, len(document), size), len(document)]
    if len(ends) > 1 and ends[-1] - ends[-2] == 1 and size > 2:
        ends[-2] -= 1
    starts = [0, *ends[:-1]]
    yield from (document[start:end] for start, end in zip(starts, ends, strict=True))

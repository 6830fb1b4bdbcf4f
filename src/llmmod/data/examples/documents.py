"""Documents, as pre-training learns from them: every token is trained, and each ends with the tokenizer's end token.

They are joined into blocks of `cutoff_len` tokens, in which a document sees those before it, as GPT-2 and LLaMA were trained; or, with
`dataset.packing`, they stay apart. The end token is trained where it is also what batches are padded with: only a place is padding, never a
token.

Documents to rows of one length: joined and cut into blocks, or each in pieces of its own.

A token that stands first in a row is never predicted, since nothing of its document stands before it there; so no row is a single token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from llmmod.config.schema.base import CutoffPolicy
from llmmod.data.examples.types import IDS, Fitted, Texts
from llmmod.errors import ConfigError, Problem
from llmmod.render.encode import Encoded
from llmmod.render.segments import Segment, own_beginning

Ids = Any  # a numpy array of int32


def join(documents: Iterable[Ids], size: int, *, drop_last: bool = False) -> Iterator[Ids]:
    """Blocks of `size` tokens, which are those of the documents one after the other.

    Args:
        documents: their ids; several in one array are as good as several arrays.
        size: tokens.
        drop_last: whether what is left at the end is left out; false: it is a shorter block, from two tokens on.
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
    """A document in pieces of `size` tokens, the last of which is shorter; where it would be a single token, it takes one more."""
    ends = [*range(size, len(document), size), len(document)]
    if len(ends) > 1 and ends[-1] - ends[-2] == 1 and size > 2:
        ends[-2] -= 1
    starts = [0, *ends[:-1]]
    yield from (document[start:end] for start, end in zip(starts, ends, strict=True))


_SCHEMA = pa.schema({"input_ids": IDS, "labels": IDS})


@dataclass(frozen=True)
class Documents:
    """Documents: ids, which are the labels too.

    Args:
        size: tokens of a row, at most.
        eos: the token that ends a document.
        bos: the token that begins one; None: this tokenizer has none.
        apart: whether documents stay apart, so that one that is longer than a row is cut into pieces, and others aren't.
        drop_last: whether the last block is left out where it isn't full.
    """

    size: int
    eos: int
    bos: int | None = None
    apart: bool = False
    drop_last: bool = False
    made: str = "examples"

    @property
    def schema(self) -> Any:
        """`input_ids` and `labels`."""
        return _SCHEMA

    def segments(self, record: str, render: Any, *, mask_prompt: bool) -> list[Texts]:
        """The text as it is: no render writes anything around it."""
        return [[[Segment(record, None, True)]]]

    def assemble(self, encoded: Sequence[Encoded]) -> Encoded:
        """The text's ids between the tokens that begin and end a document."""
        ids = [*([] if self.bos is None else [self.bos]), *encoded[0].input_ids, self.eos]
        return Encoded(ids, ids)

    def select(self, record: str, index: int) -> str:
        """The document, which makes one example."""
        return record

    def length(self, tokens: Encoded) -> int:
        """None that had to be cut off: a document may take several rows."""
        return 0

    def cut(self, tokens: Encoded, limit: int, policy: CutoffPolicy) -> Fitted | int:
        """The document as it is."""
        return Fitted(tokens, end_lost=False)

    def count(self, tokens: Encoded) -> tuple[int, int]:
        """All tokens, all of them trained."""
        return len(tokens.input_ids), len(tokens.input_ids)

    def row(self, record: str, tokens: Encoded, *, number: int = 0, of: int = 1) -> dict[str, Any]:
        """`input_ids` and `labels`, of a document."""
        return {"input_ids": tokens.input_ids, "labels": tokens.input_ids}

    def for_validation(self) -> Documents:
        """The same, with the last block."""
        return replace(self, drop_last=False)

    def arranged(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows of at most `size` tokens."""
        return map(_row, self._cut(np.asarray(row["input_ids"], np.int32) for row in rows))

    def arranged_tables(self, tables: Iterable[Any]) -> Iterator[Any]:
        """The same for Arrow's tables of rows, each as they come."""
        for ids in _in_batches(self._cut(_documents(tables))):
            offsets = np.cumsum([0, *map(len, ids)], dtype=np.int32)
            column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(ids)))
            yield pa.RecordBatch.from_arrays([column, column], schema=_SCHEMA)

    def _cut(self, documents: Iterable[Ids]) -> Iterator[Ids]:
        if self.apart:
            return (piece for ids in documents for piece in pieces(ids, self.size))
        return join(documents, self.size, drop_last=self.drop_last)


def documents_of(tokenizer: Any, *, size: int, apart: bool, drop_last: bool) -> Documents:
    """How documents are written for a tokenizer.

    Raises:
        ConfigError: it has no token that ends a text.
    """
    if tokenizer.eos_token_id is None:
        found = "this tokenizer has none, and without it documents would run into one another"
        raise ConfigError(Problem("tokenizer.kwargs.eos_token", found, do="Set it to the token that ends a text"))
    return Documents(size, int(tokenizer.eos_token_id), own_beginning(tokenizer), apart, drop_last)


def _row(ids: Ids) -> dict[str, Any]:
    found = ids.tolist()
    return {"input_ids": found, "labels": found}


def _documents(tables: Iterable[Any]) -> Iterator[Ids]:
    for table in tables:
        column = table.column("input_ids")
        ids, offsets = column.values.to_numpy(), column.offsets.to_numpy()
        yield from (ids[start:end] for start, end in pairwise(offsets))


def _in_batches(rows: Iterable[Ids], tokens: int = 1 << 20) -> Iterator[list[Ids]]:
    """Rows of about so many tokens together."""
    batch: list[Ids] = []
    held = 0
    for ids in rows:
        batch.append(ids)
        held += len(ids)
        if held >= tokens:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch

"""From records to examples: each is rendered and encoded once, in batches, and shortened if it is longer than `cutoff_len`.

Python's garbage collection is paused meanwhile. It would visit every number of every living list several times per batch without a result:
the objects here don't have reference cycles. It would take a fifth of the time of rendering and encoding.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmmod.config.schema.base import CutoffPolicy
from llmmod.data.examples.cutoff import LEAST, ends_kept, fit
from llmmod.data.examples.types import Conversations, ExampleType, Texts
from llmmod.data.rows.records import Record, RowError, RowLocation, changed
from llmmod.errors import DataError
from llmmod.render.encode import encode

LocatedRecord = tuple[RowLocation, Record]


@dataclass
class Example:
    """An example of a record, before it becomes a row.

    Args:
        record: of the example.
        index: of the example among the record's examples; None if it is the only one.
        encoded: its tokens in the form of the example type, such as ids and labels of a conversation.
        cut: whether it was longer than the limit.
        end_lost: whether the end of an answer was cut off, and isn't trained.
        dropped: whether it is left out because of its length.
    """

    record: Any
    index: int | None
    encoded: Any
    cut: bool = False
    end_lost: bool = False
    dropped: bool = False


@dataclass
class TokenizedRecord:
    """The examples of a record, or its error."""

    examples: list[Example] = field(default_factory=list)
    error: DataError | None = None

    def rows(self, example_type: ExampleType) -> list[dict[str, Any]]:
        """The rows of the examples that are kept."""
        kept = [example for example in self.examples if not example.dropped]
        return [example_type.row(example.record, example.encoded, number=example.index or 0, of=len(kept)) for example in kept]


@dataclass(frozen=True)
class Counts:
    """The counts of tokenized records.

    Args:
        examples: of the records.
        cut: examples that were longer than `cutoff_len` and were shortened.
        ends_lost: shortened examples in which the end of an answer was cut off, and isn't trained.
        dropped: examples left out because of their length (policy drop).
        tokens: of the examples.
        trained_tokens: tokens with a label.
        longest: tokens of the longest example.
        sources: records with examples; fewer than examples if a record makes several.
    """

    examples: int = 0
    cut: int = 0
    ends_lost: int = 0
    dropped: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    sources: int = 0

    @classmethod
    def of(cls, records: Sequence[TokenizedRecord], example_type: ExampleType) -> Counts:
        """The counts of some records."""
        examples = [example for record in records for example in record.examples]
        kept = [example for example in examples if not example.dropped]
        tokens = [example_type.count(example.encoded) for example in kept]
        return cls(
            examples=len(kept),
            cut=sum(example.cut for example in kept),
            ends_lost=sum(example.end_lost for example in kept),
            dropped=len(examples) - len(kept),
            tokens=sum(of_all for of_all, _ in tokens),
            trained_tokens=sum(trained for _, trained in tokens),
            longest=max((example_type.length(example.encoded) for example in kept), default=0),
            sources=sum(any(not example.dropped for example in record.examples) for record in records),
        )

    def __add__(self, other: Counts) -> Counts:
        sums = {name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__ if name != "longest"}
        return Counts(**sums, longest=max(self.longest, other.longest))

    def losses(self, cutoff_len: int) -> list[str]:
        """A line each for examples that were cut and that were left out because of their length."""
        longer = f"examples were longer than dataset.cutoff_len={cutoff_len} and were"
        lost = f", {self.ends_lost} of them lost the end of their answer, which isn't trained" if self.ends_lost else ""
        return [*([f"{self.cut} {longer} cut{lost}"] if self.cut else []), *([f"{self.dropped} {longer} left out"] if self.dropped else [])]


@contextmanager
def gc_paused() -> Iterator[None]:
    """A context in which Python's garbage collection is paused."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True)
class ExampleTokenizer:
    """Turns records into examples.

    Args:
        render: writes conversations as text and tokens.
        tokenizer: encodes them.
        limit: maximum tokens of an example.
        policy: for longer ones.
        mask_prompt: whether only answers are trained.
        example_type: of the records.
    """

    render: Any
    tokenizer: Any
    limit: int
    policy: CutoffPolicy = CutoffPolicy.proportional
    mask_prompt: bool = True
    example_type: ExampleType = field(default_factory=Conversations)

    @gc_paused()
    def tokenize(self, rows: Sequence[LocatedRecord]) -> list[TokenizedRecord]:
        """The examples of each record. All texts are encoded in one call; those of examples that are too long in a few more."""
        errors: dict[int, RowError] = {}
        examples = self._examples(rows, errors)
        self._shorten([(row, example) for row, example in examples if self.example_type.length(example.encoded) > self.limit], errors)
        made = [TokenizedRecord(error=errors[row].at(place) if row in errors else None) for row, (place, _) in enumerate(rows)]
        for row, example in examples:
            if row not in errors:
                made[row].examples.append(example)
        return made

    def _examples(self, rows: Sequence[LocatedRecord], errors: dict[int, RowError]) -> list[tuple[int, Example]]:
        """Each example with the index of its row in the batch."""
        written: list[tuple[int, int | None, Texts]] = []
        for row, (_, record) in enumerate(rows):
            try:
                found = self.example_type.segments(record, self.render, mask_prompt=self.mask_prompt)
            except DataError as error:
                errors[row] = RowError(error.problem.found, do=error.problem.do)
                continue
            written += [(row, index if len(found) > 1 else None, texts) for index, texts in enumerate(found)]
        examples = []
        for (row, index, _), tokens in zip(written, self._encoded([texts for _, _, texts in written]), strict=True):
            if isinstance(tokens, RowError):
                errors[row] = tokens
            else:
                examples.append((row, Example(rows[row][1], index, tokens)))
        return examples

    def _encoded(self, texts: Sequence[Texts]) -> list[Any]:
        """The tokens of each example, or its error."""
        encoded = iter(encode([segments for one in texts for segments in one], self.tokenizer))
        found: list[Any] = []
        for one in texts:
            try:
                found.append(self.example_type.assemble([next(encoded) for _ in one]))
            except RowError as error:
                found.append(error)
        return found

    def _shorten(self, long: Sequence[tuple[int, Example]], errors: dict[int, RowError]) -> None:
        """Apply the policy to examples that are too long."""
        if self.policy == CutoffPolicy.drop:
            for _, example in long:
                example.dropped = True
        elif long and self.policy == CutoffPolicy.proportional:
            self._fit(long, errors)
        else:
            for row, example in long:
                fitted, example.cut = self.example_type.cut(example.encoded, self.limit, self.policy), True
                if isinstance(fitted, int):
                    errors[row] = self._no_room("its prompt takes all of them", fitted)
                else:
                    example.encoded, example.end_lost = fitted

    def _fit(self, long: Sequence[tuple[int, Example]], errors: dict[int, RowError]) -> None:
        lengths = [self.example_type.length(example.encoded) for _, example in long]
        alone = [
            example.record if example.index is None else self.example_type.select(example.record, example.index) for _, example in long
        ]
        found = fit(alone, lengths, self.limit, self._rewritten, self._length)
        for (row, example), length, fitted in zip(long, lengths, found, strict=True):
            example.cut = True
            if isinstance(fitted, int):
                errors[row] = self._no_room(f"with {LEAST} characters of each text left it takes {fitted}", fitted)
            elif isinstance(fitted.tokens, RowError):
                errors[row] = self._no_room("the rounds that fit aren't trained", length)
            else:
                example.encoded, example.end_lost = fitted.tokens, self._has_lost_end(fitted.record)

    def _has_lost_end(self, shortened: Record) -> bool:
        """Whether a cut answer's end would be trained if its text were whole."""
        as_whole = changed(shortened, ends_kept)
        return as_whole != shortened and self._written(as_whole) != self._written(shortened)

    def _written(self, record: Record) -> Texts:
        return self.example_type.segments(record, self.render, mask_prompt=self.mask_prompt)[0]

    def _rewritten(self, records: Sequence[Record]) -> list[_Rewritten]:
        """The single example of each record, or its error."""
        texts: list[Texts | None] = []
        for record in records:
            try:
                texts.append(self._written(record))
            except DataError:
                texts.append(None)
        encoded = iter(self._encoded([one for one in texts if one is not None]))
        tokens = (_NOTHING_TRAINED if one is None else next(encoded) for one in texts)
        return [_Rewritten(record, found) for record, found in zip(records, tokens, strict=True)]

    def _length(self, rewritten: _Rewritten) -> int:
        return 0 if isinstance(rewritten.tokens, RowError) else self.example_type.length(rewritten.tokens)

    def _no_room(self, reason: str, needed: int) -> RowError:
        found = f"dataset.cutoff_len={self.limit} tokens is too short for its prompt and an answer: {reason}"
        do = f"Set dataset.cutoff_len to {needed} or more, or leave such rows out: dataset.cutoff_policy=drop"
        return RowError(found, do=do)


class _Rewritten(NamedTuple):
    record: Any  # shortened
    tokens: Any  # of its example, or its error


_NOTHING_TRAINED = RowError("it doesn't have trained tokens")

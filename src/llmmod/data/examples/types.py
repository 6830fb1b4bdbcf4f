"""What records of each kind become: texts to encode, and a row of columns made of their ids.

An example type is all that differs between the kinds once a row is read; how texts are encoded together, cut, counted and written is
the same.

A prompt's ids and those of the answers to it, apart; what gives way where they are too long together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import pyarrow as pa  # type: ignore[import-untyped]

from llmmod.config.schema.base import CutoffPolicy
from llmmod.data.examples.cutoff import cut_left, cut_right, ends_at, is_trained, rounds_apart
from llmmod.data.rows.records import PromptRecord, RowError
from llmmod.render.conversation import Conversation
from llmmod.render.encode import IGNORED, Encoded
from llmmod.render.segments import Segment


class TokenizedPrompt(NamedTuple):
    """A prompt and its answers in tokens; the prompt with each answer is what supervised fine-tuning would see."""

    prompt: list[int]
    answers: list[list[int]]  # each with its terminator

    @property
    def tokens(self) -> int:
        """Tokens of the prompt with the longest of the answers."""
        return len(self.prompt) + max(map(len, self.answers), default=0)


def cut_answered(example: TokenizedPrompt, limit: int, policy: CutoffPolicy) -> TokenizedPrompt | None:
    """The example in at most `limit` tokens with each answer: of the prompt the beginning goes (left), or of the answers the end (right).

    With `left`, answers that leave the prompt no room lose their ends too. None where no answer, or nothing of the prompt, would be left.
    """
    prompt, answers = example
    if policy == CutoffPolicy.left:
        kept = max(1, limit - max(map(len, answers), default=0))
        prompt = prompt[-min(kept, limit) :]
    room = limit - len(prompt)
    if room < 0 or (answers and room == 0):
        return None
    return TokenizedPrompt(prompt, [answer[:room] for answer in answers])


Texts = Sequence[Sequence[Segment]]  # of one example, each encoded by itself
IDS = pa.list_(pa.int32())


class Fitted(NamedTuple):
    """An example that was cut to fit."""

    tokens: Any
    end_lost: bool


class ExampleType(Protocol):
    """What records of a kind become."""

    @property
    def made(self) -> str:
        """What several examples of one record are called."""

    @property
    def schema(self) -> Any:
        """The columns of a row, as Arrow has them."""

    def segments(self, record: Any, render: Any, *, mask_prompt: bool) -> list[Texts]:
        """The texts of each example that a record makes."""

    def assemble(self, encoded: Sequence[Encoded]) -> Any:
        """An example's tokens; raises `RowError` where nothing of it would be trained."""

    def select(self, record: Any, index: int) -> Any:
        """The part of a record that makes its `index`-th example and no other."""

    def length(self, tokens: Any) -> int:
        """Tokens that must be at most `cutoff_len`."""

    def cut(self, tokens: Any, limit: int, policy: CutoffPolicy) -> Fitted | int:
        """The example cut at an end, or how many tokens it needs at least."""

    def count(self, tokens: Any) -> tuple[int, int]:
        """Tokens, and those of them that are trained."""

    def row(self, record: Any, tokens: Any, *, number: int = 0, of: int = 1) -> dict[str, Any]:
        """The values of an example's columns; it is the `number`-th that its record could make, and `of` of them are kept."""

    def arranged(self, rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """The rows that training takes, made of those of the examples."""

    def arranged_tables(self, tables: Iterable[Any]) -> Iterable[Any]:
        """The same for Arrow's tables of rows."""

    def for_validation(self) -> ExampleType:
        """The form of what is held out, of which nothing is left out to fill rows."""


class _AsTheyAre:
    """Rows of an example each."""

    made: str = "examples"

    def for_validation(self) -> Any:
        """The same form."""
        return self

    def arranged(self, rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """The rows themselves."""
        return rows

    def arranged_tables(self, tables: Iterable[Any]) -> Iterable[Any]:
        """The tables themselves."""
        return tables


@dataclass(frozen=True)
class Conversations(_AsTheyAre):
    """Conversations: ids and labels."""

    schema: Any = field(default=pa.schema({"input_ids": IDS, "labels": IDS}), repr=False)

    def segments(self, record: Conversation, render: Any, *, mask_prompt: bool) -> list[Texts]:
        """The render's examples: one, or several where each answer is one."""
        return [[segments] for segments in render.examples(record, mask_prompt=mask_prompt)]

    def assemble(self, encoded: Sequence[Encoded]) -> Encoded:
        """Ids and labels."""
        (example,) = encoded
        if not is_trained(example.labels):
            raise RowError("no token of it would be trained: every answer is masked")
        return example

    def select(self, record: Conversation, index: int) -> Conversation:
        """One round, where each round is an example."""
        return rounds_apart(record)[index]

    def length(self, tokens: Encoded) -> int:
        """All tokens."""
        return len(tokens.input_ids)

    def cut(self, tokens: Encoded, limit: int, policy: CutoffPolicy) -> Fitted | int:
        """The first or the last tokens; they must have a label."""
        right = policy == CutoffPolicy.right
        kept = (cut_right if right else cut_left)(tokens, limit)
        return Fitted(kept, right and ends_at(tokens) > limit) if is_trained(kept.labels) else ends_at(tokens)

    def count(self, tokens: Encoded) -> tuple[int, int]:
        """All tokens, and those with a label."""
        return len(tokens.input_ids), len(tokens.input_ids) - tokens.labels.count(IGNORED)

    def row(self, record: Conversation, tokens: Encoded, *, number: int = 0, of: int = 1) -> dict[str, Any]:
        """`input_ids` and `labels`."""
        return tokens._asdict()


@dataclass(frozen=True)
class Prompts(_AsTheyAre):
    """Prompts with answers to them, whose ids are columns of their own.

    Args:
        answers: the columns of the answers.
        values: other columns -> their Arrow types.
        messages: whether a column `prompt` holds the messages.
        made: what several examples of one record are called.
    """

    answers: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    messages: bool = False
    made: str = "examples"

    @property
    def schema(self) -> Any:
        """`prompt_ids`, the answers' ids, and the values."""
        ids = dict.fromkeys(("prompt_ids", *self.answers), IDS)
        return pa.schema(ids | ({"prompt": _MESSAGES} if self.messages else {}) | dict(self.values))

    def segments(self, record: PromptRecord, render: Any, *, mask_prompt: bool) -> list[Texts]:
        """What inference asks with, and that with each of the answers as training would see it."""
        return [[render.prompt(record.prompt), *(render.examples(one)[-1] for one in record.answered())]]

    def assemble(self, encoded: Sequence[Encoded]) -> TokenizedPrompt:
        """The prompt's ids, and what stands behind them with each answer; of one that was cut off, up to there."""
        prompt, whole = encoded[0].input_ids, [example.input_ids[: ends_at(example)] for example in encoded[1:]]
        if any(ids[: len(prompt)] != prompt for ids in whole):
            found = "the render writes another prompt before an answer than it asks with"
            raise RowError(found, do="Choose another render, or leave such rows out")
        return TokenizedPrompt(prompt, [ids[len(prompt) :] for ids in whole])

    def select(self, record: PromptRecord, index: int) -> PromptRecord:
        """The record, which makes one example."""
        return record

    def length(self, tokens: TokenizedPrompt) -> int:
        """Tokens of the prompt with the longest answer."""
        return tokens.tokens

    def cut(self, tokens: TokenizedPrompt, limit: int, policy: CutoffPolicy) -> Fitted | int:
        """All answers after the same prompt."""
        kept = cut_answered(tokens, limit, policy)
        if kept is None:
            return len(tokens.prompt) + bool(tokens.answers)
        return Fitted(kept, any(len(one) < len(other) for one, other in zip(kept.answers, tokens.answers, strict=True)))

    def count(self, tokens: TokenizedPrompt) -> tuple[int, int]:
        """Tokens of the prompt, once, and of the answers; and those of the answers."""
        trained = sum(map(len, tokens.answers))
        return len(tokens.prompt) + trained, trained

    def row(self, record: PromptRecord, tokens: TokenizedPrompt, *, number: int = 0, of: int = 1) -> dict[str, Any]:
        """`prompt_ids`, the answers' ids, and the values; None where the row has none."""
        ids = {"prompt_ids": tokens.prompt, **dict(zip(self.answers, tokens.answers, strict=True))}
        said = {"prompt": [{"role": m.role, "content": m.text} for m in record.prompt.messages]} if self.messages else {}
        return ids | said | {name: record.values.get(name) for name in self.values}


_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


def example_type_of(kind: str, values: Mapping[str, Any] | None = None) -> ExampleType:
    """The form of a kind's records; `data.forms.documents` and `data.forms.ranked` have those of documents and of rated answers.

    Args:
        kind: as a stage names it.
        values: of a prompt, columns besides -> their Arrow types.
    """
    if kind == "prompt":
        return Prompts((), {"answer": pa.string(), **(values or {})}, messages=True)
    return Conversations()

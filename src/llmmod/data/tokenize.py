"""Conversations to examples: each rendered and encoded once, in batches, and made to fit `cutoff_len` where it is longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmmod.data.cut import cut_left, cut_right, ends_at, is_trained
from llmmod.data.row import Place, RowError
from llmmod.data.shorten import LEAST, fit, rounds_apart
from llmmod.errors import DataError
from llmmod.render.conversation import Conversation
from llmmod.render.encode import Encoded, encode
from llmmod.render.segment import Segment
from llmmod.schema.base import CutoffPolicy

Placed = tuple[Place, Conversation]


@dataclass
class Example:
    """An example on its way from a conversation to a batch.

    Args:
        conversation: what it is made of.
        index: which of the conversation's examples it is, None where it is the only one.
        encoded: ids and labels.
        cut: whether it was longer than the limit.
        end_lost: whether its last label was cut off.
        dropped: whether it is left out because of its length.
    """

    conversation: Conversation
    index: int | None
    encoded: Encoded
    cut: bool = False
    end_lost: bool = False
    dropped: bool = False

    def alone(self) -> Conversation:
        """The part of the conversation that makes this example and no other: one round where each round is an example."""
        return self.conversation if self.index is None else rounds_apart(self.conversation)[self.index]


@dataclass
class Made:
    """What a conversation became: examples, or what is wrong with it."""

    examples: list[Example] = field(default_factory=list)
    fault: DataError | None = None


@dataclass(frozen=True)
class Tokenizing:
    """How conversations become examples.

    Args:
        render: how they are written.
        tokenizer: what encodes them.
        limit: tokens of an example, at most.
        policy: what gives way where there are more.
        mask_prompt: whether answers alone are trained.
    """

    render: Any
    tokenizer: Any
    limit: int
    policy: CutoffPolicy = CutoffPolicy.proportional
    mask_prompt: bool = True

    def batch(self, rows: Sequence[Placed]) -> list[Made]:
        """What each conversation became. All texts are encoded in one call, those of examples that are too long in a few more."""
        faults: dict[int, RowError] = {}
        examples = self._examples(rows, faults)
        self._shorten([(row, example) for row, example in examples if len(example.encoded.input_ids) > self.limit], faults)
        made = [Made(fault=faults[row].at(place) if row in faults else None) for row, (place, _) in enumerate(rows)]
        for row, example in examples:
            if row not in faults:
                made[row].examples.append(example)
        return made

    def _examples(self, rows: Sequence[Placed], faults: dict[int, RowError]) -> list[tuple[int, Example]]:
        """Each example with the number of its row in the batch."""
        rendered: list[tuple[int, int | None, Sequence[Segment]]] = []
        for row, (_, conversation) in enumerate(rows):
            try:
                written = self.render.examples(conversation, mask_prompt=self.mask_prompt)
            except DataError as error:
                faults[row] = RowError(error.problem.found, do=error.problem.do)
                continue
            rendered += [(row, index if len(written) > 1 else None, segments) for index, segments in enumerate(written)]
        encoded = encode([segments for _, _, segments in rendered], self.tokenizer)
        examples = [(row, Example(rows[row][1], index, ids)) for (row, index, _), ids in zip(rendered, encoded, strict=True)]
        for row, example in examples:
            if not is_trained(example.encoded.labels):
                faults[row] = RowError("no token of it would be trained: every answer is masked")
        return examples

    def _shorten(self, long: Sequence[tuple[int, Example]], faults: dict[int, RowError]) -> None:
        """Make examples that are too long fit, by the policy."""
        if self.policy == CutoffPolicy.drop:
            for _, example in long:
                example.dropped = True
        elif self.policy == CutoffPolicy.proportional:
            self._fit(long, faults)
        else:
            cut = cut_right if self.policy == CutoffPolicy.right else cut_left
            for row, example in long:
                whole, example.encoded, example.cut = example.encoded, cut(example.encoded, self.limit), True
                example.end_lost = cut is cut_right and ends_at(whole) > self.limit
                if not is_trained(example.encoded.labels):
                    faults[row] = self._no_room("its prompt takes all of them", ends_at(whole))

    def _fit(self, long: Sequence[tuple[int, Example]], faults: dict[int, RowError]) -> None:
        lengths = [len(example.encoded.input_ids) for _, example in long]
        found = fit([example.alone() for _, example in long], lengths, self.limit, self._encoded)
        for (row, example), fitted in zip(long, found, strict=True):
            example.cut = True
            if isinstance(fitted, int):
                faults[row] = self._no_room(f"with {LEAST} characters of each text left it takes {fitted}", fitted)
            elif not is_trained(fitted.labels):
                faults[row] = self._no_room("none of its rounds that fit is trained", lengths[0])
            else:
                example.encoded = fitted

    def _encoded(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        """The one example of each conversation, an empty one where nothing in it is trained."""
        written = []
        for conversation in conversations:
            try:
                written.append(self.render.examples(conversation, mask_prompt=self.mask_prompt)[0])
            except DataError:
                written.append([])
        return encode(written, self.tokenizer)

    def _no_room(self, reason: str, needed: int) -> RowError:
        found = f"dataset.cutoff_len={self.limit} tokens is too short for its prompt and an answer: {reason}"
        do = f"Set dataset.cutoff_len to {needed} or more, or leave such rows out: dataset.cutoff_policy=drop"
        return RowError(found, do=do)

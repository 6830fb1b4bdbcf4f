"""The data of a run: training examples, validation examples and conversations, and a report on both.

The held-out rows are drawn here too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from datasets import Dataset, IterableDataset

from llmmod.data.dataset.packing import PackedDataset
from llmmod.data.examples.tokenize import Counts
from llmmod.errors import ConfigError, Problem
from llmmod.render.conversation import Conversation
from llmmod.render.findings import Finding


@dataclass(frozen=True)
class DataReport:
    """A report on the data.

    Args:
        name: of the dataset.
        source: of the rows.
        format: the format that reads them, and their columns.
        rows: read for training and validation.
        skipped: bad rows that were left out (`on_bad_row=skip`).
        reasons: the errors of the first of those.
        cutoff_len: tokens.
        train: of the training examples.
        eval: of the validation examples.
        streamed: whether training examples are built during training, so that their number is unknown; `rows` are the held-out ones.
        packed_rows: rows that the training examples were packed into; 0: not packed.
        fill: the share of those rows' positions that have tokens.
        unread: columns that are not read, by dataset in a mix.
        plural: the name of several examples of one row.
        ranked: `dataset.ranked`, if examples were made from ranked answers; else empty.
    """

    name: str
    source: str
    format: str
    rows: int
    skipped: int
    cutoff_len: int
    train: Counts
    eval: Counts = field(default_factory=Counts)
    reasons: Sequence[str] = ()
    streamed: bool = False
    packed_rows: int = 0
    fill: float = 0.0
    unread: str = ""
    plural: str = "examples"
    ranked: str = ""

    @property
    def cut(self) -> int:
        """Examples that were shortened."""
        return self.train.cut + self.eval.cut

    @property
    def dropped(self) -> int:
        """Examples left out because of their length."""
        return self.train.dropped + self.eval.dropped

    @property
    def tokens(self) -> int:
        """Tokens of the training examples."""
        return self.train.tokens

    @property
    def trained_tokens(self) -> int:
        """Tokens of the training examples that have a label."""
        return self.train.trained_tokens

    def lines(self) -> list[str]:
        """The report, a line each for rows and examples."""
        held = f"{self.eval.examples} to validate with"
        unread = [f"columns that are not read: {self.unread}"] if self.unread else []
        if self.streamed:
            return [f"{self.name}: rows of {self.source}, read as {self.format}, while training; {held}", *unread]
        packed = f"packed into {self.packed_rows} rows of {self.cutoff_len} tokens, {self.fill:.1%} of them filled"
        return [
            f"{self.name}: {self.rows} rows of {self.source}, read as {self.format}",
            *unread,
            f"{self.train.examples} examples to train on, {self.train.tokens} tokens, {self.train.trained_tokens} of them trained; {held}",
            *([packed] if self.packed_rows else []),
            *([self._ranked()] if self.ranked and self.train.examples != self.train.sources else []),
        ]

    def _ranked(self) -> str:
        held = f", {self.eval.examples} of {self.eval.sources} rows held out" if self.eval.examples else ""
        made = f"{self.train.examples} {self.plural} from the ranked answers of {self.train.sources} rows{held}"
        return f"{made} (dataset.ranked={self.ranked}); each row has the same total weight"

    def losses(self) -> list[str]:
        """A line for each part of the data that is not used; empty if all of it is."""
        found = (self.train + self.eval).losses(self.cutoff_len)
        if self.skipped:
            found.append(f"{self.skipped} bad rows were left out (dataset.on_bad_row=skip), the first: {self.reasons[0]}")
        return found


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    Args:
        train: columns `input_ids` and `labels`, lists of int32 of the same length; -100 for tokens that aren't trained. Packed: a row has
            several examples, and `seq_lengths` has their lengths in tokens. Streamed: without a length or an end.
        eval: the same for validation, never packed; None without held-out rows.
        eval_conversations: the conversations of `eval`, in the same order.
        report: on the data.
        identity: of these examples; None if they can't be identified.
        content: dataset -> digest of the rows that were read; empty for streams, whose rows haven't been read yet.
        findings: of the certificate, none of them fatal; None: the render was not certified.
    """

    train: Dataset | PackedDataset | IterableDataset
    eval: Dataset | None
    eval_conversations: Sequence[Conversation]
    report: DataReport
    identity: str | None = None
    content: Mapping[str, str] = field(default_factory=dict)
    findings: Sequence[Finding] | None = None

    def packed(self, capacity: int) -> Splits:
        """The same data with the training examples packed into rows of `capacity` tokens; validation examples are unchanged."""
        train = PackedDataset(self.train, capacity)
        return replace(self, train=train, report=replace(self.report, packed_rows=len(train), fill=train.fill))


def validation_indices(count: int, val_size: float, *, seed: int) -> frozenset[int]:
    """Indices of the held-out rows, the same for the same count, size and seed, on any machine.

    Args:
        count: number of rows.
        val_size: a fraction below 1, rounded up as in scikit-learn and `datasets`, or a number of rows, at least 1.
        seed: of the draw; with Python's Mersenne twister, whose `sample` is specified not to change.

    Raises:
        ConfigError: an invalid size, or one that leaves either side empty.
    """
    if val_size < 0 or (val_size > 1 and val_size != int(val_size)):
        allowed = "Allowed: a fraction such as 0.1, or a whole number of examples"
        raise ConfigError(Problem("dataset.val_size", f"{val_size:g}", allowed))
    size = math.ceil(count * val_size) if val_size < 1 else int(val_size)
    if not 0 < size < count:
        found = f"{val_size:g} of {count} rows leaves {max(count - size, 0)} to train on and {size} to validate with"
        raise ConfigError(Problem("dataset.val_size", found, "At least one is needed on each side"))
    return frozenset(random.Random(seed).sample(range(count), size))

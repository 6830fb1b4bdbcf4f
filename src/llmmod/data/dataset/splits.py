"""What the data of a run became: examples to train on, examples and conversations to validate with, and an account of both.

Which rows are held out for validation is drawn here too.
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
    """An account of the data.

    Args:
        name: of the dataset.
        source: where the rows come from.
        format: the format that read them, and their columns.
        rows: read for training and validation.
        skipped: rows left out because they are bad (`on_bad_row=skip`).
        reasons: what was wrong with the first of those.
        cutoff_len: tokens.
        train: of the training examples.
        eval: of the validation examples.
        streamed: whether training examples are made while training, so that nobody knows their number; `rows` are those held out.
        packed_rows: rows that the training examples were packed into; 0: they weren't.
        fill: the part of those rows' positions that holds tokens.
        unread: columns that nothing reads, by dataset in a mix.
        plural: what several examples of one row are called.
        ranked: `dataset.ranked`, by which they were made of its answers; empty: they weren't.
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
        """The account, a line each for rows and examples."""
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
        made = f"{self.train.examples} {self.plural} came of the ranked answers of {self.train.sources} rows{held}"
        return f"{made} (dataset.ranked={self.ranked}); each row counts once, however many it made"

    def losses(self) -> list[str]:
        """What of the data is not used, in a line each; nothing where all of it is."""
        found = (self.train + self.eval).losses(self.cutoff_len)
        if self.skipped:
            found.append(f"{self.skipped} bad rows were left out (dataset.on_bad_row=skip), the first: {self.reasons[0]}")
        return found


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    Args:
        train: columns `input_ids` and `labels`, lists of int32 of the same length; -100 where nothing is trained. Packed: each
            row is several examples, and `seq_lengths` says how many tokens each has. Streamed: without a length or an end.
        eval: the same for validation, never packed, None where nothing is held out.
        eval_conversations: the conversations that `eval` was made of, in the same order.
        report: an account.
        identity: what tells these examples apart from any others; None where nothing does.
        content: dataset -> digest of the rows that were read; empty for streams, whose rows nobody has seen yet.
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
        """The same data with the training examples packed into rows of `capacity` tokens; those to validate with stay as they are."""
        train = PackedDataset(self.train, capacity)
        return replace(self, train=train, report=replace(self.report, packed_rows=len(train), fill=train.fill))


def validation_indices(count: int, val_size: float, *, seed: int) -> frozenset[int]:
    """Indices of the held-out rows, the same for the same count, size and seed, on any machine.

    Args:
        count: rows there are.
        val_size: a fraction below 1, rounded up as scikit-learn and `datasets` do, or a number of rows from 1 on.
        seed: of the draw; Python's Mersenne twister, whose `sample` is specified to stay.

    Raises:
        ConfigError: a size that is none, or one that leaves either side empty.
    """
    if val_size < 0 or (val_size > 1 and val_size != int(val_size)):
        allowed = "Allowed: a fraction such as 0.1, or a whole number of examples"
        raise ConfigError(Problem("dataset.val_size", f"{val_size:g}", allowed))
    size = math.ceil(count * val_size) if val_size < 1 else int(val_size)
    if not 0 < size < count:
        found = f"{val_size:g} of {count} rows leaves {max(count - size, 0)} to train on and {size} to validate with"
        raise ConfigError(Problem("dataset.val_size", found, "At least one is needed on each side"))
    return frozenset(random.Random(seed).sample(range(count), size))

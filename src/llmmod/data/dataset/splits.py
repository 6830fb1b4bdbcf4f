"""The data of a run: training examples, validation examples and conversations, and a report on both.

The held-out rows are drawn here too. `dataset.mix` makes one of several datasets, each opened, read and cached with its own configuration;
their examples alternate.
"""

from __future__ import annotations

import dataclasses
import math
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset, IterableDataset, concatenate_datasets

from llmmod.config.schema.base import MixStopping
from llmmod.config.schema.data import ColumnsConf, DatasetConf, MixedConf
from llmmod.data.dataset.packing import PackedDataset
from llmmod.data.examples.tokenize import Counts
from llmmod.errors import ConfigError, Problem
from llmmod.render.conversation import Conversation
from llmmod.render.encode import IGNORED
from llmmod.render.findings import Finding

Item = TypeVar("Item")
_END = object()
_ROWS = 1000  # per read


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
        rows, examples = (f"{count} {noun}{'s' * (count != 1)}" for count, noun in ((self.rows, "row"), (self.train.examples, "example")))
        return [
            f"{self.name}: {rows} of {self.source}, read as {self.format}",
            *unread,
            f"{examples} to train on, {self.train.tokens} tokens, {self.train.trained_tokens} of them trained; {held}",
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


class Share(NamedTuple):
    """One of several datasets."""

    weight: float
    conf: DatasetConf


def shares(conf: DatasetConf) -> list[Share]:
    """The datasets of a mix, each with a complete configuration; without a mix, the dataset itself."""
    found = []
    for name, entry in conf.mix.items():
        own = MixedConf(**{str(key): value for key, value in entry.items()})
        columns = ColumnsConf(**entry.get("columns") or {})
        given = {field: value for field, value in vars(own).items() if value is not None and field not in ("weight", "columns")}
        if own.val_size is None and (own.val_files or own.val_split):
            given["val_size"] = 0.0
        columns = conf.columns if columns == ColumnsConf() else columns
        found.append(Share(own.weight, dataclasses.replace(conf, **given, name=name, columns=columns, mix={})))
    return found or [Share(1.0, conf)]


def within_mix(error: ConfigError, name: str) -> ConfigError:
    """The same error with the keys that the user typed, below `dataset.mix`."""
    return ConfigError([dataclasses.replace(p, key=p.key.replace("dataset.", f"dataset.mix.{name}.", 1)) for p in error.problems])


def check_mix(conf: DatasetConf) -> list[Problem]:
    """A problem for each key that a mix replaces."""
    set_beside = [name for name in ("path", "data_files", "val_files", "val_split") if conf.mix and getattr(conf, name)]
    return [Problem(f"dataset.{name}", "not read with dataset.mix", do=f"Set dataset.mix.<name>.{name}") for name in set_beside]


def take_turns(sources: Sequence[Callable[[], Iterator[Item]]], weights: Sequence[float], stopping: MixStopping) -> Iterator[Item]:
    """Items of several sources, in proportion to their weights: among the first n items, each source is within one of its share.

    The next item is from the source that is furthest behind, the first of several: 2 to 1 is a, a, b, a, a, b.

    Args:
        sources: each yields its items from the first on at every call; none is empty.
        weights: above 0, one for each.
        stopping: `first_exhausted`: at the end of the first source that has no more items; `all_exhausted`: once all sources have been
            read to their end; those that end earlier restart.
    """
    reading = [source() for source in sources]
    ahead = [next(items, _END) for items in reading]
    taken = [0] * len(sources)
    unread = set(range(len(sources)))
    while unread:
        turn = min(range(len(sources)), key=lambda index: (taken[index] + 1) / weights[index])
        if ahead[turn] is _END:
            return
        yield ahead[turn]  # type: ignore[misc]
        taken[turn] += 1
        ahead[turn] = next(reading[turn], _END)
        if ahead[turn] is _END and stopping == MixStopping.all_exhausted:
            unread.discard(turn)
            reading[turn] = sources[turn]()
            ahead[turn] = next(reading[turn], _END)


def mix_splits(parts: Sequence[Splits], weights: Sequence[float], stopping: MixStopping, *, name: str) -> Splits:
    """One dataset of several: training examples by their weights, and all that are held out."""
    lengths = [len(part.train) for part in parts]
    starts = [sum(lengths[:index]) for index in range(len(parts))]
    ranges = [range(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    order = array("q", take_turns([lambda numbers=numbers: iter(numbers) for numbers in ranges], weights, stopping))  # type: ignore[misc]
    held = [part.eval for part in parts if part.eval is not None]
    train = concatenate_datasets([part.train for part in parts]).select(order)
    conversations = [conversation for part in parts for conversation in part.eval_conversations]
    return Splits(train, concatenate_datasets(held) if held else None, conversations, _report(parts, order, ranges, name))


def _report(parts: Sequence[Splits], order: Sequence[int], ranges: Sequence[range], name: str) -> DataReport:
    taken = [sum(number in numbers for number in order) for numbers in ranges]
    train = sum((_counts(part, count) for part, count in zip(parts, taken, strict=True)), Counts())
    of_parts = zip(parts, taken, strict=True)
    return DataReport(
        name=name,
        source=", ".join(f"{part.report.name} ({count} examples)" for part, count in of_parts),
        format=", ".join(dict.fromkeys(part.report.format.partition(" (")[0].partition(":")[0] for part in parts)),
        rows=sum(part.report.rows for part in parts),
        skipped=sum(part.report.skipped for part in parts),
        cutoff_len=parts[0].report.cutoff_len,
        train=train,
        eval=sum((part.report.eval for part in parts), Counts()),
        reasons=[reason for part in parts for reason in part.report.reasons][:3],
        unread="; ".join(f"{part.report.unread} in {part.report.name}" for part in parts if part.report.unread),
        plural=parts[0].report.plural,
        ranked=max(part.report.ranked for part in parts),
    )


def _counts(part: Splits, count: int) -> Counts:
    """The counts of the first `count` examples of a part, which restarts at its end; cut and dropped ones are those of the whole part."""
    whole, rest = divmod(count, len(part.train))
    made = part.report.train
    examples: Any = part.train
    tokens, trained = _tokens(examples.select(range(rest)))
    tokens, trained = whole * made.tokens + tokens, whole * made.trained_tokens + trained
    sources = -(-count * made.sources // made.examples)  # approximate: a row of ranked answers may be used in part
    return dataclasses.replace(made, examples=count, sources=sources, tokens=tokens, trained_tokens=trained)


def _tokens(examples: Dataset) -> tuple[int, int]:
    """Tokens, and those with a label; for a prompt with answers, which doesn't have labels, those of the answers."""
    if "labels" in examples.column_names:
        labels = [pc.list_flatten(table["labels"]) for table in examples.with_format("arrow").iter(batch_size=_ROWS)]
        return sum(map(len, labels)), sum(pc.sum(pc.not_equal(found, IGNORED)).as_py() or 0 for found in labels)
    names = [name for name in examples.column_names if name.endswith("_ids")]
    tables = [*examples.select_columns(names).with_format("arrow").iter(batch_size=_ROWS)]
    tokens = {name: sum(pc.sum(pc.list_value_length(table[name])).as_py() or 0 for table in tables) for name in names}
    return sum(tokens.values()), sum(tokens.values()) - tokens["prompt_ids"]

"""A dataset's examples as files in a directory: written batch by batch, and mapped when they are read.

Every row is read and checked before the first is tokenized, so that a bad one is told at once; sources are read twice for it, which adds
a twentieth to the time (measured: 19 µs a row to read and check, 340 to do all of it) and nothing to memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmmod.data.dataset.build import Built, build_dataset, map_dataset
from llmmod.data.dataset.splits import Counts, DataReport, Splits, validation_indices
from llmmod.data.examples.tokenize import ExampleTokenizer, LocatedRecord
from llmmod.data.rows.records import asked_of, listed
from llmmod.data.sources.dataset import OpenedDataset
from llmmod.data.sources.reader import BadRows, RecordReader
from llmmod.errors import DataError, Problem
from llmmod.render.conversation import Conversation, Message

_TRAIN, _EVAL, _CONVERSATIONS, _ACCOUNT = "train.arrow", "eval.arrow", "eval_conversations.jsonl", "account.json"


@dataclass(frozen=True)
class DatasetBuilder:
    """How a dataset's examples are made.

    Args:
        opened: the rows.
        example_tokenizer: how they become examples.
        seed: of the draw of those that `val_size` holds out.
        smoke: whether this is a rehearsal, with too few rows for the `val_size` that was asked for.
    """

    opened: OpenedDataset
    example_tokenizer: ExampleTokenizer
    seed: int
    smoke: bool = False

    def write(self, directory: Path) -> None:
        """Write everything that `read` finds into an empty directory.

        Raises:
            DataError: a row is wrong, or none is left.
            ConfigError: `val_size` leaves one side without rows.
        """
        training, validating = self.opened.training, self.opened.validating
        survey = training.survey()
        held, bad = self._held(survey.used, read=survey.read), survey.bad
        bad += validating.survey().bad if validating else BadRows()

        aside: list[LocatedRecord] = []
        train = self._built(_set_aside(training, held, aside), directory / _TRAIN, self.example_tokenizer, purpose="train on")
        aside += validating or ()
        bad += train.faults
        evaluation, conversations = self.validation(aside, directory / _EVAL, bad)
        _write_conversations(directory / _CONVERSATIONS, conversations)
        account = {
            "rows": len(train.made) + len(aside),
            "skipped": len(bad),
            "reasons": [str(fault) for fault in bad.first],
            "train": asdict(train.counts),
            "eval": asdict(evaluation.counts if evaluation else Counts()),
        }
        (directory / _ACCOUNT).write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")

    def read(self, directory: Path, *, key: str | None = None) -> Splits:
        """What `write` has written.

        Args:
            directory: where.
            key: of the content; None: it has none.
        """
        conf, training = self.opened.conf, self.opened.training
        account = json.loads((directory / _ACCOUNT).read_text(encoding="utf-8"))
        sources = [part.source.name for part in (training, self.opened.validating) if part]
        known: dict[str, Any] = {"name": conf.name, "source": " and ".join(sources), "format": str(training.format)}
        known |= {"unread": listed(training.format.unread)}
        known |= {"made": self.example_tokenizer.example_type.made, "ranked": str(conf.ranked) if self.opened.ranks() else ""}
        known |= {part: Counts(**account.pop(part)) for part in ("train", "eval")}
        report = DataReport(cutoff_len=conf.cutoff_len, **known, **account)
        datasets = [
            map_dataset(directory / name, fingerprint=key and f"{key}-{name}") if (directory / name).exists() else None
            for name in (_TRAIN, _EVAL)
        ]
        assert datasets[0] is not None, "write never leaves it out"
        return Splits(datasets[0], datasets[1], list(_read_conversations(directory / _CONVERSATIONS)), report, identity=key)

    def validation(self, rows: Sequence[LocatedRecord], path: Path, bad: BadRows) -> tuple[Built | None, list[Conversation]]:
        """The examples of held-out rows, and the conversations that a model can be asked with; None where no row is held out.

        Args:
            rows: those held out.
            path: the Arrow file that the examples are written to.
            bad: what is wrong with rows that are left out is added to it.

        Raises:
            DataError: a row is wrong, or none is left.
        """
        if not rows:
            return None, []
        example_tokenizer = replace(self.example_tokenizer, example_type=self.example_tokenizer.example_type.for_validation())
        built = self._built(rows, path, example_tokenizer, purpose="validate with")
        bad += built.faults
        kept = (record for (_, record), examples in zip(rows, built.made, strict=True) if examples)
        return built, [conversation for record in kept if (conversation := asked_of(record)) is not None]

    def _held(self, count: int, *, read: int) -> frozenset[int]:
        conf = self.opened.conf
        if not conf.val_size:
            return frozenset()
        held = validation_indices(read, conf.val_size, seed=self.seed)
        # A rehearsal uses too few rows for the size that was asked for: a third of them, which is SMOKE_EVAL of all.
        return validation_indices(count, max(1, count // 3), seed=self.seed) if self.smoke else held

    def _built(self, rows: Iterable[LocatedRecord], path: Path, example_tokenizer: ExampleTokenizer, *, purpose: str) -> Built:
        conf, skip = self.opened.conf, self.opened.training.skip
        built = build_dataset(rows, example_tokenizer, path=path, num_proc=conf.num_proc, skip=skip)
        if not built.counts.examples:
            few = [f"the texts have {built.counts.tokens} tokens, and a block {conf.cutoff_len}"] if self.opened.kind == "document" else []
            long = [f"{built.counts.dropped} are longer than dataset.cutoff_len={conf.cutoff_len}"] if built.counts.dropped else []
            bad = [f"{len(built.faults)} can't be trained; the first: {built.faults.first[0]}"] if built.faults else []
            raise DataError(Problem(conf.name, f"no example is left to {purpose}: {', '.join(few + long + bad)}"))
        return built


def _set_aside(rows: RecordReader, held: frozenset[int], aside: list[LocatedRecord]) -> Iterator[LocatedRecord]:
    """The rows that are not held out; those that are go to `aside` on the way."""
    for index, row in enumerate(rows):
        if index in held:
            aside.append(row)
        else:
            yield row


def _write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(conversation)) + "\n" for conversation in conversations)


def _read_conversations(path: Path) -> Iterator[Conversation]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            made = json.loads(line)
            yield Conversation([Message(**message) for message in made["messages"]], made["tools"])

"""A dataset's examples as files in a directory: written in batches, memory-mapped when read, cached for later runs.

Every row is read and checked before the first is tokenized, so that a bad one ends the run at once. Sources are read twice for that, which
adds a twentieth to the time (measured: 19 µs to read and check a row, of 340 in all) and no memory.

The cache key is computed from everything that affects the examples. The places and names of files, the number of processes and the training
are not part of it.
"""

from __future__ import annotations

import atexit
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmmod.cache.content import NoIdentityError, code_identity, digest, format_identity, render_identity, tokenizer_identity
from llmmod.cache.store import Cache
from llmmod.data.dataset.build import Built, build_dataset, map_dataset
from llmmod.data.dataset.splits import DataReport, Splits, validation_indices
from llmmod.data.examples.answers import Judgements, Preferences
from llmmod.data.examples.tokenize import Counts, ExampleTokenizer, LocatedRecord
from llmmod.data.rows.records import asked_of, listed
from llmmod.data.sources.reader import BadRows, OpenedDataset, RecordReader
from llmmod.errors import DataError, Problem
from llmmod.render.conversation import Conversation, Message

log = logging.getLogger(__name__)

_TRAIN, _EVAL, _CONVERSATIONS, _ACCOUNT = "train.arrow", "eval.arrow", "eval_conversations.jsonl", "account.json"


@dataclass(frozen=True)
class DatasetBuilder:
    """Builds a dataset's examples.

    Args:
        opened: the rows.
        example_tokenizer: turns them into examples.
        seed: for the draw of the rows that `val_size` holds out.
        smoke: whether this is a rehearsal, with too few rows for the configured `val_size`.
    """

    opened: OpenedDataset
    example_tokenizer: ExampleTokenizer
    seed: int
    smoke: bool = False

    def build(self, cache: Cache) -> Splits:
        """The examples from the cache; if they are missing, they are built and cached first.

        Raises:
            DataError: a row is wrong, or there is none left.
            ConfigError: `val_size` leaves one side without rows.
        """
        key, content = self._key_and_content()
        splits = self._build(cache, key)
        return splits if content is None else replace(splits, content={self.opened.conf.name: content})

    def _build(self, cache: Cache, key: str | None) -> Splits:
        if key is None or not self.opened.conf.cache:
            return self._build_for_now(key)

        def write(directory: Path) -> bool:
            self.write(directory)
            return self.cache_key() == key  # if a file changed meanwhile, the result must not be cached

        try:
            place, found = cache.get(key, write)
        except OSError as error:
            log.warning("the cache can't be used (%s), so these examples are not kept; set LLMMOD_CACHE to another directory", error)
            return self._build_for_now(key)
        if found:
            log.info("%s: examples from the cache, %s", self.opened.conf.name, place)
        return self.read(place, key=key if place.name == key else None)

    def _build_for_now(self, key: str | None) -> Splits:
        directory = process_directory()
        self.write(directory)
        return self.read(directory, key=key if key is not None and key == self.cache_key() else None)

    def cache_key(self) -> str | None:
        """32 hex digits; None in a rehearsal, or if a part can't be identified."""
        return self._key_and_content()[0]

    def _key_and_content(self) -> tuple[str | None, str | None]:
        """The key of the examples, and the digest of the rows; in a rehearsal, of the few rows that it reads."""
        if self.smoke:
            readers = [reader for reader in (self.opened.training, self.opened.validating) if reader]
            return None, digest([[repr(record) for _, record in reader] for reader in readers])
        try:
            identity = self._identity()
            rows = [part["content"] for part in (identity["rows"], identity["held out"]) if isinstance(part, dict)]
            return digest(identity), digest(rows)
        except NoIdentityError as error:
            log.info("%s: the examples are not kept in the cache: %s", self.opened.conf.name, error)
            return None, None

    def _identity(self) -> dict[str, Any]:
        opened, tokenizer, example_type = self.opened, self.example_tokenizer, self.example_tokenizer.example_type
        conf, document = opened.conf, opened.kind == "document"
        return {
            "kind": opened.kind,
            "rows": _rows_identity(opened.training),
            "held out": [conf.val_size, self.seed] if conf.val_size else _rows_identity(opened.validating),
            "format": format_identity(conf.format) if not isinstance(conf.format, str) else None,
            "system": conf.system,
            "on_bad_row": conf.on_bad_row,
            "cutoff": [tokenizer.limit, None if document else tokenizer.policy],
            "mask_prompt": tokenizer.mask_prompt if opened.kind == "conversation" else None,
            "values": {name: kind.__name__ for name, kind in (opened.training.values or {}).items()},
            "ranked": [conf.ranked, example_type.weighs] if isinstance(example_type, Judgements | Preferences) else None,
            "blocks": [conf.packing, conf.drop_last_block] if document else None,
            "render": None if document else render_identity(tokenizer.render),
            "tokenizer": tokenizer_identity(tokenizer.tokenizer),
            "code": code_identity(),
        }

    def write(self, directory: Path) -> None:
        """Write the files that `read` reads into an empty directory; raises the same errors as `build`."""
        training, validating = self.opened.training, self.opened.validating
        survey = training.survey()
        held, bad = self._validation_indices(survey.used, read=survey.read), survey.bad
        bad += validating.survey().bad if validating else BadRows()

        held_rows: list[LocatedRecord] = []

        def rows_to_train() -> Iterator[LocatedRecord]:
            for index, row in enumerate(training):
                if index in held:
                    held_rows.append(row)
                else:
                    yield row

        train = self._examples(rows_to_train(), directory / _TRAIN, self.example_tokenizer, purpose="train on")
        held_rows += validating or ()
        bad += train.bad
        evaluation, conversations = self.validation(held_rows, directory / _EVAL, bad)
        with (directory / _CONVERSATIONS).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(conversation)) + "\n" for conversation in conversations)
        account = {
            "rows": len(train.per_record) + len(held_rows),
            "skipped": len(bad),
            "reasons": [str(error) for error in bad.first],
            "train": asdict(train.counts),
            "eval": asdict(evaluation.counts if evaluation else Counts()),
        }
        (directory / _ACCOUNT).write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")

    def read(self, directory: Path, *, key: str | None = None) -> Splits:
        """The examples in a directory written by `write`.

        Args:
            directory: with the files.
            key: of the content, or None.
        """
        conf, training = self.opened.conf, self.opened.training
        account = json.loads((directory / _ACCOUNT).read_text(encoding="utf-8"))
        sources = [part.source.name for part in (training, self.opened.validating) if part]
        known: dict[str, Any] = {"name": conf.name, "source": " and ".join(sources), "format": str(training.format)}
        known |= {"unread": listed(training.format.unread), "plural": self.example_tokenizer.example_type.plural}
        known |= {"ranked": str(conf.ranked) if self.opened.ranks() else ""}
        known |= {part: Counts(**account.pop(part)) for part in ("train", "eval")}
        report = DataReport(cutoff_len=conf.cutoff_len, **known, **account)
        train, evaluation = (
            map_dataset(directory / name, fingerprint=key and f"{key}-{name}") if (directory / name).exists() else None
            for name in (_TRAIN, _EVAL)
        )
        assert train is not None, "write never leaves it out"
        with (directory / _CONVERSATIONS).open(encoding="utf-8") as file:
            written = [json.loads(line) for line in file]
        conversations = [Conversation([Message(**message) for message in one["messages"]], one["tools"]) for one in written]
        return Splits(train, evaluation, conversations, report, identity=key)

    def validation(self, rows: Sequence[LocatedRecord], path: Path, bad: BadRows) -> tuple[Built | None, list[Conversation]]:
        """The examples of held-out rows, and the conversations for answering; None without held-out rows.

        Args:
            rows: the held-out ones.
            path: the Arrow file that the examples are written to.
            bad: what is wrong with rows that are left out is added to it.

        Raises:
            DataError: a row is wrong, or none is left.
        """
        if not rows:
            return None, []
        tokenizer = replace(self.example_tokenizer, example_type=self.example_tokenizer.example_type.for_validation())
        built = self._examples(rows, path, tokenizer, purpose="validate with")
        bad += built.bad
        kept = (record for (_, record), count in zip(rows, built.per_record, strict=True) if count)
        return built, [conversation for record in kept if (conversation := asked_of(record)) is not None]

    def _validation_indices(self, count: int, *, read: int) -> frozenset[int]:
        conf = self.opened.conf
        if not conf.val_size:
            return frozenset()
        held = validation_indices(read, conf.val_size, seed=self.seed)
        # A rehearsal has too few rows for the configured size, so a third of them are held out, SMOKE_EVAL of all.
        return validation_indices(count, max(1, count // 3), seed=self.seed) if self.smoke else held

    def _examples(self, rows: Iterable[LocatedRecord], path: Path, tokenizer: ExampleTokenizer, *, purpose: str) -> Built:
        conf, skip = self.opened.conf, self.opened.training.skip
        built = build_dataset(rows, tokenizer, path=path, num_proc=conf.num_proc, skip=skip)
        if not built.counts.examples:
            few = [f"the texts have {built.counts.tokens} tokens, a block {conf.cutoff_len}"] if self.opened.kind == "document" else []
            long = [f"{built.counts.dropped} are longer than dataset.cutoff_len={conf.cutoff_len}"] if built.counts.dropped else []
            bad = [f"{len(built.bad)} can't be trained on; the first: {built.bad.first[0]}"] if built.bad else []
            raise DataError(Problem(conf.name, f"no example is left to {purpose}: {', '.join(few + long + bad)}"))
        return built


def _rows_identity(reader: RecordReader | None) -> Any:
    """The identity of the rows and their reader; if bad rows are left out, with their places, since the report names some."""
    if reader is None:
        return None
    places = reader.source.name if reader.skip else None
    read_as = [reader.format.name, dict(reader.format.columns)]
    return {"content": reader.source.identity(), "limit": reader.limit, "places": places, "format": read_as}


def process_directory() -> Path:
    """A new directory that is removed when this process ends."""
    directory = Path(tempfile.mkdtemp(prefix="llmmod-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory

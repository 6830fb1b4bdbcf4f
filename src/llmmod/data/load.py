"""From `dataset.*` to examples: open, choose the format, check every row, hold some out, tokenize.

Every row is read and checked before the first is tokenized, so that a bad one is told at once; sources are read twice for it, which adds
a twentieth to the time (measured: 19 µs a row to read and check, 340 to do all of it) and nothing to memory.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from llmmod.data.build import Built, build_dataset
from llmmod.data.choose import choose_format
from llmmod.data.open_source import open_source
from llmmod.data.readings import Readings
from llmmod.data.row import RowError
from llmmod.data.sources import Source
from llmmod.data.split import held_out
from llmmod.data.splits import Counts, DataReport, Splits
from llmmod.data.tokenize import Placed, Tokenizing
from llmmod.errors import ConfigError, DataError, Problem
from llmmod.render.certificate import certify
from llmmod.render.finding import refuse
from llmmod.schema.base import OnBadRow
from llmmod.schema.data import DatasetConf
from llmmod.schema.model import HubConf

log = logging.getLogger(__name__)

HEAD = 1000  # rows that are looked at for the columns there are
PROVED = 8  # rows that the certificate looks at
SMOKE_TRAIN, SMOKE_EVAL = 8, 4  # rows of a rehearsal


def load_splits(
    conf: DatasetConf, *, render: Any, tokenizer: Any, seed: int, hub: HubConf, smoke: bool = False, verify: str | None = None
) -> Splits:
    """The examples of a dataset, to train on and to validate with.

    Args:
        conf: `dataset.*`.
        render: how conversations are written.
        tokenizer: what encodes them.
        seed: of the validation split, where `dataset.seed` isn't set.
        hub: how downloads are made.
        smoke: whether a few rows are enough.
        verify: the name of the render, to prove first that training and inference see the same tokens; None: no proof.

    Raises:
        ConfigError: no such data, columns or format, options that contradict each other, or the proof fails.
        DataError: a file or a row is wrong.
    """
    _check(conf)
    training = _readings(conf, _open(conf, hub), limit=_limit(conf, smoke))
    validating = _validation(conf, hub, smoke)
    count, bad = training.survey()
    held = _held(conf, count, seed=seed, smoke=smoke) if conf.val_size else frozenset()
    bad += validating.survey()[1] if validating else []
    if verify is not None:
        _prove(render, tokenizer, training, verify)

    tokenizing = Tokenizing(render, tokenizer, conf.cutoff_len, conf.cutoff_policy, conf.mask_prompt)
    aside: list[Placed] = []
    train = _built(_set_aside(training, held, aside), tokenizing, conf, purpose="train on")
    if validating:
        aside = list(validating)
    evaluation = _built(aside, tokenizing, conf, purpose="validate with") if aside else None
    made = evaluation.made if evaluation else []
    conversations = [conversation for (_, conversation), examples in zip(aside, made, strict=True) if examples]
    bad += [*train.faults, *(evaluation.faults if evaluation else [])]
    report = DataReport(
        name=conf.name,
        source=training.source.name,
        format=str(training.format),
        rows=len(train.made) + len(made),
        skipped=len(bad),
        cutoff_len=conf.cutoff_len,
        train=train.counts,
        eval=evaluation.counts if evaluation else Counts(),
        reasons=[str(fault) for fault in bad[:3]],
    )
    _tell(report)
    return Splits(train.dataset, evaluation.dataset if evaluation else None, conversations, report)


def _check(conf: DatasetConf) -> None:
    """Refuse what contradicts itself or isn't there yet."""
    ways = [f"dataset.{name}" for name in ("val_size", "val_files", "val_split") if getattr(conf, name)]
    problems = [Problem(" and ".join(ways), "more than one way to hold examples out", do="Keep one of them")] if len(ways) > 1 else []
    for name in ("streaming", "packing", "mix"):
        if getattr(conf, name):
            problems.append(Problem(f"dataset.{name}", "set, but this version can't do it yet", do=f"Leave dataset.{name} out"))
    if problems:
        raise ConfigError(problems)


def _open(conf: DatasetConf, hub: HubConf) -> Source:
    return open_source(conf.path, data_files=conf.data_files, subset=conf.subset, split=conf.split, hub=hub)


def _validation(conf: DatasetConf, hub: HubConf, smoke: bool) -> Readings | None:
    """The held-out conversations that are rows of their own."""
    if conf.val_files:
        builder = conf.path if conf.data_files else None
        source = open_source(builder, data_files=conf.val_files, hub=hub, key="dataset.val_files")
    elif conf.val_split:
        source = _open(dataclasses.replace(conf, split=conf.val_split), hub)
    else:
        return None
    return _readings(conf, source, limit=SMOKE_EVAL if smoke else None)


def _readings(conf: DatasetConf, source: Source, *, limit: int | None) -> Readings:
    head = [row for _, row in islice(source, HEAD) if not isinstance(row, RowError)]
    if not head:
        _refuse_headless(source)
    given = {role: column for role, column in vars(conf.columns).items() if column is not None}
    found = choose_format(conf.format, kind="conversation", given=given, head=head, file=source.name)
    return Readings(source, found, conf.on_bad_row == OnBadRow.skip, conf.system, limit)


def _refuse_headless(source: Source) -> None:
    """Say why a source has no first row."""
    for place, row in source:
        if isinstance(row, RowError):
            raise row.at(place)
    raise DataError(Problem(source.name, "no rows"))


def _limit(conf: DatasetConf, smoke: bool) -> int | None:
    limits = [conf.max_samples, SMOKE_TRAIN + (SMOKE_EVAL if conf.val_size else 0) if smoke else None]
    return min((limit for limit in limits if limit is not None), default=None)


def _prove(render: Any, tokenizer: Any, rows: Readings, name: str) -> None:
    """Refuse a render that can't be vouched for, on made-up conversations and the first rows; what is only worth knowing is told."""
    findings = certify(render, tokenizer, {str(place): conversation for place, conversation in islice(rows, PROVED)})
    refuse(findings, name)
    for finding in findings:
        log.info("render=%s: %s", name, finding)


def _held(conf: DatasetConf, count: int, *, seed: int, smoke: bool) -> frozenset[int]:
    # A rehearsal has too few rows for the size that was asked for: a third of them, which is SMOKE_EVAL of all.
    size = max(1, count // 3) if smoke else conf.val_size
    return held_out(count, size, seed=seed if conf.seed is None else conf.seed)


def _set_aside(rows: Readings, held: frozenset[int], aside: list[Placed]) -> Iterator[Placed]:
    """The rows that are not held out; those that are go to `aside` on the way."""
    for index, row in enumerate(rows):
        if index in held:
            aside.append(row)
        else:
            yield row


def _built(rows: Iterator[Placed] | Sequence[Placed], tokenizing: Tokenizing, conf: DatasetConf, *, purpose: str) -> Built:
    built = build_dataset(rows, tokenizing, num_proc=conf.num_proc, skip=conf.on_bad_row == OnBadRow.skip)
    if not built.counts.examples:
        long = [f"{built.counts.dropped} are longer than dataset.cutoff_len={conf.cutoff_len}"] if built.counts.dropped else []
        bad = [f"{len(built.faults)} can't be trained; the first: {built.faults[0]}"] if built.faults else []
        raise DataError(Problem(conf.name, f"no example is left to {purpose}: {', '.join(long + bad)}"))
    return built


def _tell(report: DataReport) -> None:
    for line in report.lines():
        log.info(line)
    for line in report.losses():
        log.warning(line)

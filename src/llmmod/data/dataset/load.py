"""From `dataset.*` to examples: open, choose the format, certify the render, and build the examples or find them in the cache."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from llmmod.cache.content import digest
from llmmod.cache.store import Cache, cache_directory
from llmmod.config.schema.data import DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.dataset.builder import DatasetBuilder, process_directory
from llmmod.data.dataset.certify import require_certificate
from llmmod.data.dataset.splits import Splits, check_mix, mix_splits, shares, within_mix
from llmmod.data.dataset.stream import stream_splits
from llmmod.data.examples.answers import Judgements, Preferences, Prompts
from llmmod.data.examples.tokenize import ExampleTokenizer
from llmmod.data.examples.types import Conversations, Documents, ExampleType
from llmmod.data.sources.reader import OpenedDataset, open_dataset, with_common_types
from llmmod.errors import ConfigError, Problem

log = logging.getLogger(__name__)


def load_splits(
    conf: DatasetConf,
    *,
    render: Any,
    tokenizer: Any,
    seed: int,
    hub: HubConf,
    kind: str = "conversation",
    smoke: bool = False,
    verify: str | None = None,
) -> Splits:
    """The training and validation examples of a dataset.

    Args:
        conf: `dataset.*`.
        render: writes conversations as text and tokens.
        tokenizer: encodes them.
        seed: of the validation split, if `dataset.seed` isn't set.
        hub: settings of downloads.
        kind: of the records that the stage needs.
        smoke: whether a few rows are enough.
        verify: the name of the render, to certify first that training and inference use the same tokens; None: not certified.

    Raises:
        ConfigError: the data, columns or format don't exist, options contradict each other, or the render isn't certified.
        DataError: a file or a row is wrong.
    """
    builders = open_builders(conf, render=render, tokenizer=tokenizer, seed=seed, hub=hub, kind=kind, smoke=smoke)
    findings = None if verify is None else require_certificate(builders, verify)
    weights = [share.weight for share in shares(conf)]
    if conf.streaming:
        splits = stream_splits(conf, builders, weights, process_directory())
    else:
        limit = None if conf.cache_max_gb is None else int(conf.cache_max_gb * 1e9)
        cache = Cache(cache_directory(hub.cache_dir) / "examples", max_bytes=limit)
        parts = [builder.build(cache) for builder in builders]
        splits = mix_splits(parts, weights, conf.mix_stopping, name=conf.name) if conf.mix else parts[0]
        splits = splits.packed(max(builder.example_tokenizer.limit for builder in builders)) if conf.packing else splits
        known = [part.identity for part in parts]
        identity = None if None in known else digest([known, weights, conf.mix_stopping, conf.packing, conf.cutoff_len])
        splits = replace(splits, identity=identity, content={name: one for part in parts for name, one in part.content.items()})
    splits = replace(splits, findings=findings)
    for line in splits.report.lines():
        log.info(line)
    for line in splits.report.losses():
        log.warning(line)
    if kind == "judgement" and not conf.streaming:
        _warn_of_one_label(splits, conf.name)
    return splits


def open_builders(
    conf: DatasetConf, *, render: Any, tokenizer: Any, seed: int, hub: HubConf, kind: str = "conversation", smoke: bool = False
) -> list[DatasetBuilder]:
    """The builder of each dataset of a mix, or of the single dataset; arguments as in `load_splits`.

    Raises:
        ConfigError: the data, columns or format don't exist, or options contradict each other.
        DataError: a file is wrong.
    """
    _check(conf)
    parts: list[OpenedDataset] = []
    for share in shares(conf):
        try:
            _check(share.conf)
            parts.append(open_dataset(share.conf, kind=kind, hub=hub, smoke=smoke))
        except ConfigError as error:
            raise within_mix(error, share.conf.name) if conf.mix else error from error.__cause__
    parts = with_common_types(parts) if kind == "prompt" else parts
    weighs = any(part.ranks() for part in parts)
    builders = []
    for part in parts:
        own, example_type = part.conf, _example_type(part, tokenizer, weighs=weighs)
        example_tokenizer = ExampleTokenizer(render, tokenizer, own.cutoff_len, own.cutoff_policy, own.mask_prompt, example_type)
        builders.append(DatasetBuilder(part, example_tokenizer, seed if own.seed is None else own.seed, smoke))
    return builders


def _check(conf: DatasetConf) -> None:
    """Refuse options that contradict each other."""
    ways = [f"dataset.{name}" for name in ("val_size", "val_files", "val_split") if getattr(conf, name)]
    problems = [Problem(" and ".join(ways), "more than one way to hold examples out", do="Keep one of them")] if len(ways) > 1 else []
    problems += check_mix(conf)
    if problems:
        raise ConfigError(problems)


def _example_type(opened: OpenedDataset, tokenizer: Any, *, weighs: bool) -> ExampleType:
    conf, kind = opened.conf, opened.kind
    if kind == "document":
        return Documents.of(tokenizer, size=conf.cutoff_len, separate=conf.packing, drop_last=conf.drop_last_block)
    if kind == "preference":
        return Preferences.of(conf.ranked, weighs=weighs)
    if kind == "judgement":
        return Judgements.of(conf.ranked, weighs=weighs)
    return Prompts.to_answer(opened.training.values or {}) if kind == "prompt" else Conversations()


def _warn_of_one_label(splits: Splits, name: str) -> None:
    """Warn if all training answers have the same label, so that they can't be compared with others."""
    train: Any = splits.train
    labels = {label for table in train.with_format("arrow").iter(batch_size=1000) for label in table["label"].unique().to_pylist()}
    if len(labels) == 1:
        said, lacking = ("true", "bad (undesirable)") if True in labels else ("false", "good (desirable)")
        log.warning("%s: the label of every training answer is %s, so %s answers to learn from are missing", name, said, lacking)

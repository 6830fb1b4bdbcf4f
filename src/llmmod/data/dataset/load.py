"""From `dataset.*` to examples: open, choose the format, certify the data, and build the examples or find them in the cache.

The certificate checks synthetic conversations or documents and the first rows of each dataset. For conversations it is the render's. For
documents it checks on examples that pre-training uses a text as the tokenizer encodes it, with its end token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from llmmod.cache.content import digest
from llmmod.cache.store import Cache, cache_directory
from llmmod.config.schema.data import DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.dataset.builder import DatasetBuilder, process_directory
from llmmod.data.dataset.splits import Splits, check_mix, mix_splits, shares, within_mix
from llmmod.data.dataset.stream import stream_splits
from llmmod.data.examples.answers import Judgements, Preferences, Prompts
from llmmod.data.examples.tokenize import ExampleTokenizer
from llmmod.data.examples.types import Conversations, Documents, ExampleType
from llmmod.data.rows.records import RowLocation, conversations_of
from llmmod.data.sources.reader import OpenedDataset, open_dataset, with_common_types
from llmmod.errors import ConfigError, Problem
from llmmod.render.certificate import certify
from llmmod.render.findings import Finding, refuse, seam, spelling, synthetic_texts
from llmmod.render.segments import own_beginning

log = logging.getLogger(__name__)

CERTIFIED_ROWS = 8  # rows of each dataset that the certificate checks
CERTIFIED_CHARACTERS = 10_000  # characters of a document that the certificate checks


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
    findings = None if verify is None else check_certificate(builders, verify)
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


class DataCertificate(NamedTuple):
    """The findings of the certificate, and the number of checked rows."""

    findings: list[Finding]
    rows: int


def check_certificate(builders: Sequence[DatasetBuilder], name: str) -> list[Finding]:
    """The findings that are not fatal, which are logged; a fatal one is an error.

    Args:
        builders: of the datasets of a run, at least one.
        name: the render's.

    Raises:
        ConfigError: the training would use wrong tokens.
    """
    key = "tokenizer" if builders[0].opened.kind == "document" else f"render={name}"
    findings = certify_data(builders).findings
    refuse(findings, key)
    for finding in findings:
        log.info("%s: %s", key, finding)
    return findings


def certify_data(builders: Sequence[DatasetBuilder]) -> DataCertificate:
    """The certificate of the data of a run.

    Args:
        builders: of its datasets, all with the same render and tokenizer.
    """
    tokenizer = builders[0].example_tokenizer
    records = {str(place): record for builder in builders for place, record in islice(builder.opened.training, CERTIFIED_ROWS)}
    if builders[0].opened.kind == "document":

        def examples(texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
            made = tokenizer.tokenize([(RowLocation("", number), text) for number, text in enumerate(texts)])
            return [(one.examples[0].encoded.input_ids, one.examples[0].encoded.labels) for one in made]

        return DataCertificate(certify_documents(tokenizer.tokenizer, examples, records), len(records))
    conversations = {}
    for place, record in records.items():
        for number, conversation in enumerate(conversations_of(record), start=1):
            conversations[f"{place}, answer {number}" if number > 1 else place] = conversation
    return DataCertificate(certify(tokenizer.render, tokenizer.tokenizer, conversations), len(records))


def certify_documents(
    tokenizer: Any, examples: Callable[[Sequence[str]], list[tuple[list[int], list[int]]]], documents: Mapping[str, str]
) -> list[Finding]:
    """The first finding of each check of documents; empty without findings.

    Args:
        tokenizer: encodes them.
        examples: texts -> ids and labels of each, as in training.
        documents: the first of the data, by name, checked in addition to synthetic ones.
    """
    texts = {**synthetic_texts(tokenizer.all_special_tokens), **{name: text[:CERTIFIED_CHARACTERS] for name, text in documents.items()}}
    found: dict[str, Finding] = {}
    for (name, text), (ids, labels) in zip(texts.items(), examples(list(texts.values())), strict=True):
        for finding in _findings(tokenizer, text, ids, labels):
            found.setdefault(finding.check, replace(finding, conversation=name))
    return list(found.values())


def _findings(tokenizer: Any, text: str, ids: list[int], labels: list[int]) -> Iterator[Finding]:
    bos, eos = own_beginning(tokenizer), tokenizer.eos_token_id
    start = [] if bos is None else [bos]
    if ids[-1:] != [eos]:
        yield Finding("end", f"a document ends with {spelling(tokenizer, ids[-1])} instead of {spelling(tokenizer, eos)}")
    if ids[: len(start)] != start:
        yield Finding("beginning", f"a document doesn't begin with {spelling(tokenizer, start[0])}, as this tokenizer's texts do")
    if labels != ids:
        yield Finding("labels", "a document's labels are not its ids", seam=seam(tokenizer, ids=ids, labels=labels))
    inner = ids[len(start) : -1]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if injected := [token for token in inner if token in special]:
        yield Finding("injection", f"a text became a special token: {spelling(tokenizer, injected[0])}")
    if not any(name in text for name in tokenizer.get_added_vocab()):
        plain = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if list(plain) != inner:
            where = seam(tokenizer, found=inner, whole=plain)
            yield Finding("text", "a document isn't encoded as the tokenizer encodes a text", seam=where)

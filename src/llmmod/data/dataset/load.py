"""From `dataset.*` to examples: open, choose the format, prove the render, and make the examples or find them in the cache.

The key of a dataset's examples: made of all that decides them, and of nothing else.

Not in it: where files lie and what they are called, how many processes work, and everything about the training.
"""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmmod.cache.content import NoIdentityError, code_identity, digest, format_identity, render_identity, tokenizer_identity
from llmmod.cache.store import Cache, cache_directory
from llmmod.config.schema.data import DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.dataset.certify import require_certificate
from llmmod.data.dataset.examples import DatasetBuilder
from llmmod.data.dataset.mix import check_mix, mix_splits, shares, within_mix
from llmmod.data.dataset.packing import pack_splits
from llmmod.data.dataset.splits import DataReport, Splits
from llmmod.data.dataset.stream import stream_splits
from llmmod.data.examples.documents import documents_of
from llmmod.data.examples.ranked import Judgements, Preferences, compared, judged
from llmmod.data.examples.tokenize import ExampleTokenizer
from llmmod.data.examples.types import ExampleType, example_type_of
from llmmod.data.sources.dataset import OpenedDataset, open_dataset, with_values
from llmmod.data.sources.reader import RecordReader, arrow_types
from llmmod.errors import ConfigError, Problem

log = logging.getLogger(__name__)


def cache_key(builder: DatasetBuilder) -> str | None:
    """32 hex digits; None in a rehearsal, or where a part has no identity."""
    if builder.smoke:
        return None
    try:
        return digest(_identity(builder))
    except NoIdentityError as error:
        log.info("%s: the examples are not kept in the cache: %s", builder.opened.conf.name, error)
        return None


def _identity(builder: DatasetBuilder) -> dict[str, Any]:
    opened, example_tokenizer = builder.opened, builder.example_tokenizer
    conf, document = opened.conf, opened.kind == "document"
    return {
        "kind": opened.kind,
        "rows": _rows(opened.training),
        "held out": [conf.val_size, builder.seed] if conf.val_size else _rows(opened.validating),
        "format": format_identity(conf.format) if not isinstance(conf.format, str) else None,
        "system": conf.system,
        "on_bad_row": conf.on_bad_row,
        "cutoff": [example_tokenizer.limit, None if document else example_tokenizer.policy],
        "mask_prompt": example_tokenizer.mask_prompt if opened.kind == "conversation" else None,
        "values": {name: kind.__name__ for name, kind in (opened.training.values or {}).items()},
        "ranked": [conf.ranked, example_tokenizer.example_type.weighs]
        if isinstance(example_tokenizer.example_type, Preferences | Judgements)
        else None,
        "blocks": [conf.packing, conf.drop_last_block] if document else None,
        "render": None if document else render_identity(example_tokenizer.render),
        "tokenizer": tokenizer_identity(example_tokenizer.tokenizer),
        "code": code_identity(),
    }


def _rows(readings: RecordReader | None) -> Any:
    """The rows and what reads them; with their places where bad ones are left out, for the account then names the first of them."""
    if readings is None:
        return None
    places = readings.source.name if readings.skip else None
    read_as = [readings.format.name, dict(readings.format.columns)]
    return {"content": readings.source.identity(), "limit": readings.limit, "places": places, "format": read_as}


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
    """The examples of a dataset, to train on and to validate with.

    Args:
        conf: `dataset.*`.
        render: how conversations are written.
        tokenizer: what encodes them.
        seed: of the validation split, where `dataset.seed` isn't set.
        hub: how downloads are made.
        kind: what a row becomes, as the stage needs it.
        smoke: whether a few rows are enough.
        verify: the name of the render, to prove first that training and inference see the same tokens; None: no proof.

    Raises:
        ConfigError: no such data, columns or format, options that contradict each other, or the proof fails.
        DataError: a file or a row is wrong.
    """
    builders = open_builders(conf, render=render, tokenizer=tokenizer, seed=seed, hub=hub, kind=kind, smoke=smoke)
    if verify is not None:
        require_certificate(builders, verify)
    weights = [share.weight for share in shares(conf)]
    if conf.streaming:
        splits = stream_splits(conf, builders, weights, _directory_for_now())
    else:
        limit = None if conf.cache_max_gb is None else int(conf.cache_max_gb * 1e9)
        cache = Cache(cache_directory(hub.cache_dir) / "examples", max_bytes=limit)
        parts = [_made(builder, cache) for builder in builders]
        splits = mix_splits(parts, weights, conf.mix_stopping, name=conf.name) if conf.mix else parts[0]
        splits = pack_splits(splits, max(builder.example_tokenizer.limit for builder in builders)) if conf.packing else splits
        splits = replace(splits, identity=_identity_of_load(conf, parts, weights))
    _tell(splits.report)
    if kind == "judgement" and not conf.streaming:
        _tell_one_sided(splits, conf.name)
    return splits


def open_builders(
    conf: DatasetConf, *, render: Any, tokenizer: Any, seed: int, hub: HubConf, kind: str = "conversation", smoke: bool = False
) -> list[DatasetBuilder]:
    """How the examples of each dataset of a mix are made, or of the one there is; the arguments are those of `load_splits`.

    Raises:
        ConfigError: no such data, columns or format, or options that contradict each other.
        DataError: a file is wrong.
    """
    _check(conf)
    parts = [_opened(share.conf, kind=kind, hub=hub, smoke=smoke, mixed=bool(conf.mix)) for share in shares(conf)]
    parts = with_values(parts) if kind == "prompt" else parts
    weighs = any(part.ranks() for part in parts)
    return [_builder(part, render, tokenizer, seed=seed, smoke=smoke, weighs=weighs) for part in parts]


def _opened(conf: DatasetConf, *, kind: str, hub: HubConf, smoke: bool, mixed: bool) -> OpenedDataset:
    try:
        _check(conf)
        return open_dataset(conf, kind=kind, hub=hub, smoke=smoke)
    except ConfigError as error:
        raise within_mix(error, conf.name) if mixed else error from error.__cause__


def _builder(opened: OpenedDataset, render: Any, tokenizer: Any, *, seed: int, smoke: bool, weighs: bool) -> DatasetBuilder:
    conf, kind = opened.conf, opened.kind
    if kind == "document":
        example_type: ExampleType = documents_of(tokenizer, size=conf.cutoff_len, apart=conf.packing, drop_last=conf.drop_last_block)
    elif kind in ("preference", "judgement"):
        example_type = (compared if kind == "preference" else judged)(conf.ranked, weighs=weighs)
    else:
        example_type = example_type_of(kind, arrow_types(opened.training.values or {}))
    example_tokenizer = ExampleTokenizer(render, tokenizer, conf.cutoff_len, conf.cutoff_policy, conf.mask_prompt, example_type)
    return DatasetBuilder(opened, example_tokenizer, seed if conf.seed is None else conf.seed, smoke)


def _check(conf: DatasetConf) -> None:
    """Refuse what contradicts itself or isn't there yet."""
    ways = [f"dataset.{name}" for name in ("val_size", "val_files", "val_split") if getattr(conf, name)]
    problems = [Problem(" and ".join(ways), "more than one way to hold examples out", do="Keep one of them")] if len(ways) > 1 else []
    problems += check_mix(conf)
    if problems:
        raise ConfigError(problems)


def _made(builder: DatasetBuilder, cache: Cache) -> Splits:
    """The examples from the cache, made and put there first where it has none."""
    key = cache_key(builder)
    if key is None or not builder.opened.conf.cache:
        return _made_for_now(builder, key)

    def write(directory: Path) -> bool:
        builder.write(directory)
        return cache_key(builder) == key  # a file that was written to meanwhile is of no use to anybody later

    try:
        place, found = cache.get(key, write)
    except OSError as error:
        log.warning("the cache can't be used (%s), so these examples are not kept; LLMMOD_CACHE names another directory", error)
        return _made_for_now(builder, key)
    if found:
        log.info("%s: examples from the cache, %s", builder.opened.conf.name, place)
    return builder.read(place, key=key if place.name == key else None)


def _made_for_now(builder: DatasetBuilder, key: str | None) -> Splits:
    """The examples in a directory of their own."""
    directory = _directory_for_now()
    builder.write(directory)
    return builder.read(directory, key=key if key is not None and key == cache_key(builder) else None)


def _identity_of_load(conf: DatasetConf, parts: Sequence[Splits], weights: Sequence[float]) -> str | None:
    """What tells the examples apart from any others: those of all parts, and how they stand together."""
    known = [part.identity for part in parts]
    return None if None in known else digest([known, weights, conf.mix_stopping, conf.packing, conf.cutoff_len])


def _directory_for_now() -> Path:
    """A directory that goes with this process."""
    directory = Path(tempfile.mkdtemp(prefix="llmmod-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _tell_one_sided(splits: Splits, name: str) -> None:
    """Say where all answers to train on have one label: there is nothing that they are better or worse than."""
    train: Any = splits.train
    labels = {label for table in train.with_format("arrow").iter(batch_size=1000) for label in table["label"].unique().to_pylist()}
    if len(labels) == 1:
        said, lacking = ("true", "bad (undesirable)") if True in labels else ("false", "good (desirable)")
        log.warning("%s: the label of every answer to train on is %s: there is no %s answer to learn from", name, said, lacking)


def _tell(report: DataReport) -> None:
    for line in report.lines():
        log.info(line)
    for line in report.losses():
        log.warning(line)

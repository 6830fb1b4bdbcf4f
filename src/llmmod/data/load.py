"""From `dataset.*` to examples: open, choose the format, prove the render, and make the examples or find them in the cache."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from llmmod.data.cache import Cache, cache_directory
from llmmod.data.cache_key import cache_key
from llmmod.data.examples import Making
from llmmod.data.forms import form_of
from llmmod.data.mix import check_mix, mix_splits, shares, within_mix
from llmmod.data.opened import open_dataset
from llmmod.data.packed import pack_splits
from llmmod.data.readings import Readings
from llmmod.data.records import conversations_of
from llmmod.data.splits import DataReport, Splits
from llmmod.data.streamed import stream_splits
from llmmod.data.tokenize import Tokenizing
from llmmod.data.values import arrow_types
from llmmod.errors import ConfigError, Problem
from llmmod.render.certificate import certify
from llmmod.render.conversation import Conversation
from llmmod.render.finding import refuse
from llmmod.schema.data import DatasetConf
from llmmod.schema.model import HubConf

log = logging.getLogger(__name__)

PROVED = 8  # rows that the certificate looks at


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
    _check(conf)
    of_mix = shares(conf)
    makings = [_making(share.conf, render, tokenizer, kind=kind, seed=seed, hub=hub, smoke=smoke, mixed=bool(conf.mix)) for share in of_mix]
    if verify is not None:
        for making in makings:
            _prove(render, tokenizer, making.opened.training, verify)
    weights = [share.weight for share in of_mix]
    if conf.streaming:
        splits = stream_splits(conf, makings, weights, _directory_for_now())
    else:
        cache = Cache(cache_directory(hub.cache_dir) / "examples")
        parts = [_made(making, cache) for making in makings]
        splits = mix_splits(parts, weights, conf.mix_stopping, name=conf.name) if conf.mix else parts[0]
        splits = pack_splits(splits, max(making.tokenizing.limit for making in makings)) if conf.packing else splits
    _tell(splits.report)
    return splits


def _making(conf: DatasetConf, render: Any, tokenizer: Any, *, kind: str, seed: int, hub: HubConf, smoke: bool, mixed: bool) -> Making:
    try:
        _check(conf)
        opened = open_dataset(conf, kind=kind, hub=hub, smoke=smoke)
    except ConfigError as error:
        raise within_mix(error, conf.name) if mixed else error from error.__cause__
    form = form_of(kind, arrow_types(opened.training.values or {}))
    tokenizing = Tokenizing(render, tokenizer, conf.cutoff_len, conf.cutoff_policy, conf.mask_prompt, form)
    return Making(opened, tokenizing, seed if conf.seed is None else conf.seed, smoke)


def _check(conf: DatasetConf) -> None:
    """Refuse what contradicts itself or isn't there yet."""
    ways = [f"dataset.{name}" for name in ("val_size", "val_files", "val_split") if getattr(conf, name)]
    problems = [Problem(" and ".join(ways), "more than one way to hold examples out", do="Keep one of them")] if len(ways) > 1 else []
    problems += check_mix(conf)
    if conf.packing and conf.streaming:
        found = "set with dataset.streaming, and this version can't pack a stream yet"
        problems.append(Problem("dataset.packing", found, do="Leave one of them out"))
    if problems:
        raise ConfigError(problems)


def _made(making: Making, cache: Cache) -> Splits:
    """The examples from the cache, made and put there first where it has none."""
    key = cache_key(making)
    if key is None:
        return _made_for_now(making)

    def write(directory: Path) -> bool:
        making.write(directory)
        return cache_key(making) == key  # a file that was written to meanwhile is of no use to anybody later

    try:
        place, found = cache.get(key, write)
    except OSError as error:
        log.warning("the cache can't be used (%s), so these examples are not kept; LLMMOD_CACHE names another directory", error)
        return _made_for_now(making)
    if found:
        log.info("%s: examples from the cache, %s", making.opened.conf.name, place)
    return making.read(place, key=key)


def _made_for_now(making: Making) -> Splits:
    """The examples in a directory of their own."""
    directory = _directory_for_now()
    making.write(directory)
    return making.read(directory)


def _directory_for_now() -> Path:
    """A directory that goes with this process."""
    directory = Path(tempfile.mkdtemp(prefix="llmmod-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _prove(render: Any, tokenizer: Any, rows: Readings, name: str) -> None:
    """Refuse a render that can't be vouched for, on made-up conversations and the first rows; what is only worth knowing is told."""
    findings = certify(render, tokenizer, first_conversations(rows))
    refuse(findings, name)
    for finding in findings:
        log.info("render=%s: %s", name, finding)


def first_conversations(rows: Readings) -> dict[str, Conversation]:
    """Place -> conversation of the first rows, as a proof looks at them: what is asked, with each answer."""
    found = {}
    for place, record in islice(rows, PROVED):
        for number, conversation in enumerate(conversations_of(record), start=1):
            found[f"{place}, answer {number}" if number > 1 else str(place)] = conversation
    return found


def _tell(report: DataReport) -> None:
    for line in report.lines():
        log.info(line)
    for line in report.losses():
        log.warning(line)

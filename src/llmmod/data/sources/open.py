"""From `dataset.path` and `dataset.data_files` to a source: this disk first, then the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_from_disk
from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern

from llmmod.data.row import described, first_line
from llmmod.data.sources.hub import load_streams, load_table
from llmmod.data.sources.source import BY_BUILDER, BY_SUFFIX, Files, Source, Streamed, Table, take_split
from llmmod.errors import ConfigError, DataError, Problem
from llmmod.paths import PACKAGE, find_files, resolve_path, shown
from llmmod.schema.model import HubConf

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ADDRESS = re.compile(r"(?!pkg:)[a-z0-9]+://")
_ONE_OF_THEM = "Leave one of them out, e.g. dataset.data_files=null, or begin with dataset=json or dataset=hub"
_KINDS = ", ".join(suffix.removeprefix(".") for suffix in BY_SUFFIX)


def open_source(
    path: str | None,
    *,
    hub: HubConf,
    data_files: Any = None,
    subset: str | None = None,
    split: str = "train",
    key: str = "dataset.data_files",
    streaming: bool = False,
) -> Source:
    """The rows that a configuration names.

    Args:
        path: a file, a glob, a directory, a dataset saved to disk, a hub id, or the name of a builder for `data_files`.
        hub: how downloads are made.
        data_files: a path, a glob, an address, a list of them, or split -> those; relative to `path` where that is a directory.
        subset: a hub dataset's configuration name.
        split: which rows, by the grammar of `datasets`.
        key: the key `data_files` was typed for.
        streaming: whether what is on the hub is downloaded while it is read.

    Raises:
        ConfigError: nothing is there.
        DataError: a file can't be read.
    """
    if path is None and not data_files:
        raise ConfigError(Problem("dataset.path", "there is no data to read", do="Set dataset.path or dataset.data_files"))
    if data_files and _is_remote(data_files):
        return _on_hub(path or _builder_of(data_files), data_files, subset=subset, split=split, hub=hub, streaming=streaming)
    if path is None or (path in BY_BUILDER and data_files):
        return take_split(_splits_of_files(data_files, BY_BUILDER.get(path or ""), key=key), split)
    if path in BY_BUILDER and not Path(path).exists():
        raise ConfigError(Problem("dataset.path", f"'{path}' reads files, and none are given", do="Set dataset.data_files"))
    place = resolve_path(path, key="dataset.path")
    if isinstance(place, Path):
        return take_split(_splits_at(place, data_files, key=key), split)
    if _is_hub_id(path) and not any(path.endswith(suffix) for suffix in BY_SUFFIX):
        if data_files and PACKAGE in str(data_files):
            found = f"'{path}' is on the hub, and dataset.data_files is not: {data_files}"
            raise ConfigError(Problem("dataset.path", found, do=_ONE_OF_THEM))
        return _on_hub(path, data_files, subset=subset, split=split, hub=hub, streaming=streaming)
    return take_split({"train": _files(path, None, key="dataset.path")}, split)


def _on_hub(path: str, data_files: Any, *, subset: str | None, split: str, hub: HubConf, streaming: bool) -> Source:
    if not streaming:
        return Table(f"{path} [{split}]", load_table(path, subset=subset, data_files=data_files, split=split, hub=hub))
    streams = load_streams(path, subset=subset, data_files=data_files, hub=hub)
    return take_split({name: Streamed(f"{path} [{name}]", stream) for name, stream in streams.items()}, split)


def _splits_at(place: Path, data_files: Any, *, key: str) -> Mapping[str, Source]:
    """Split -> source of what stands at a path that exists."""
    if data_files:
        if not place.is_dir():
            raise ConfigError(Problem("dataset.path", f"'{shown(place)}' is a file, and dataset.data_files names others", do=_ONE_OF_THEM))
        return _splits_of_files(data_files, None, key=key, base=place)
    if place.is_file():
        return {"train": _files(str(place), None, key="dataset.path")}
    if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
        return _splits_saved(place)
    return _splits_in_folder(place, key="dataset.path")


def _splits_of_files(data_files: Any, reader: Any, *, key: str, base: Path | None = None) -> Mapping[str, Source]:
    by_split = data_files if isinstance(data_files, Mapping) else {"train": data_files}
    return {str(split): _files(files, reader, key=key, base=base) for split, files in by_split.items()}


def _files(patterns: Any, reader: Any, *, key: str, base: Path | None = None) -> Files:
    if not isinstance(patterns, str | list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(Problem(key, described(patterns), "Allowed: a path, a glob, or a list of them"))
    found: list[Path] = []
    for path in find_files(patterns, key=key, base=base):
        found += _splits_in_folder(path, key=key)["train"].paths if path.is_dir() else [path]
    unknown = [] if reader else [path for path in found if path.suffix.lower() not in BY_SUFFIX]
    if unknown:
        do = "Name its kind: dataset.path=json dataset.data_files=…"
        raise ConfigError(Problem(key, f"{shown(unknown[0])} is of no known kind", f"Known: {_KINDS}", do))
    return Files(found, reader)


def _splits_in_folder(folder: Path, *, key: str) -> dict[str, Files]:
    """Split -> the data files of a directory; which split a file belongs to, its name says, by the rules of `datasets`."""
    try:
        patterns = get_data_patterns(str(folder))
    except EmptyDatasetError:
        patterns = {}
    splits: dict[str, Files] = {}
    for split, globs in patterns.items():
        named = {Path(found): None for glob in globs for found in _resolved(glob, folder)}
        known = sorted(path for path in named if path.suffix.lower() in BY_SUFFIX)
        if known:
            splits[str(split)] = Files(known)
    if not splits:
        raise ConfigError(Problem(key, f"no data files in {shown(folder)}", f"Known: {_KINDS}"))
    return splits


def _resolved(glob: str, folder: Path) -> Iterable[str]:
    try:
        return resolve_pattern(glob, str(folder))
    except FileNotFoundError:  # one of a split's several patterns
        return []


def _splits_saved(folder: Path) -> Mapping[str, Source]:
    try:
        saved: Dataset | DatasetDict = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(Problem(shown(folder), f"a dataset saved to disk that can't be read: {first_line(error)}")) from error
    parts = saved if isinstance(saved, DatasetDict) else {"train": saved}
    return {str(split): Table(f"{shown(folder)} [{split}]", part) for split, part in parts.items()}


def _is_hub_id(path: str) -> bool:
    return _HUB_ID.fullmatch(path) is not None and not path.startswith(".")


def _is_remote(data_files: Any) -> bool:
    values = data_files.values() if isinstance(data_files, Mapping) else [data_files]
    texts = [text for value in values for text in (value if isinstance(value, list | tuple) else [value])]
    return any(isinstance(text, str) and _ADDRESS.match(text) for text in texts)


def _builder_of(data_files: Any) -> str:
    """The builder that an address's suffix asks for; json where it tells nothing."""
    suffix = str(data_files).rstrip("'\"]}").rpartition(".")[2]
    return {"tsv": "csv", "txt": "text"}.get(suffix, suffix if suffix in BY_BUILDER else "json")

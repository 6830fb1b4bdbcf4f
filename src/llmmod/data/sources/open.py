"""From `dataset.path` and `dataset.data_files` to a source: this disk first, then the hub.

Without a network, `datasets` retries for 23 seconds (5.2, huggingface_hub 2.4), and its error doesn't say what to do. Here the hub gets one
request with a time limit, before `load_dataset`; if it doesn't answer, the copy in the cache is used, with a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, DownloadConfig, load_from_disk
from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from llmmod.config.schema.model import HubConf
from llmmod.data.rows.records import described
from llmmod.data.sources.read_files import BY_BUILDER, BY_SUFFIX
from llmmod.data.sources.source import Files, Source, StreamSource, Table, read_split, take_split
from llmmod.errors import ConfigError, DataError, Problem, first_line
from llmmod.files.checkpoint import set_proxies
from llmmod.files.paths import PACKAGE, find_files, is_hub_id, resolve_path, shown
from llmmod.upstream import require_upstream

require_upstream(__name__)

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
_ADDRESS = re.compile(r"(?!pkg:)[a-z0-9]+://")
_LOCAL = "Give a file or directory on this machine: dataset.path=/path/to/data.jsonl"
_ONE_OF_THEM = "Leave one of them out, e.g. dataset.data_files=null, or start with dataset=json or dataset=hub"
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
        hub: settings of downloads.
        data_files: a path, a glob, an address, a list of them, or split -> those; relative to `path` if that is a directory.
        subset: a hub dataset's configuration name.
        split: which rows, by the grammar of `datasets`.
        key: the key `data_files` was typed for.
        streaming: whether data of the hub is downloaded while it is read.

    Raises:
        ConfigError: the path, dataset or split doesn't exist, or there is neither a network nor a copy in the cache; within seconds.
        DataError: a file can't be read.
    """
    if path is None and not data_files:
        raise ConfigError(Problem("dataset.path", "is not set", do="Set dataset.path or dataset.data_files"))
    if data_files and _is_remote(data_files):
        if path is None:
            suffix = str(data_files).rstrip("'\"]}").rpartition(".")[2]
            path = {"tsv": "csv", "txt": "text"}.get(suffix, suffix if suffix in BY_BUILDER else "json")
        return _on_hub(path, data_files, subset=subset, split=split, hub=hub, streaming=streaming)
    if path is None or (path in BY_BUILDER and data_files):
        return take_split(_splits_of_files(data_files, BY_BUILDER.get(path or ""), key=key), split)
    if path in BY_BUILDER and not Path(path).exists():
        raise ConfigError(Problem("dataset.path", f"'{path}' reads files, but files are not given", do="Set dataset.data_files"))
    place = resolve_path(path, key="dataset.path")
    if isinstance(place, Path):
        return take_split(_splits_at(place, data_files, key=key), split)
    if is_hub_id(path) and not any(path.endswith(suffix) for suffix in BY_SUFFIX):
        if data_files and PACKAGE in str(data_files):
            found = f"'{path}' is on the hub, but dataset.data_files is not: {data_files}"
            raise ConfigError(Problem("dataset.path", found, do=_ONE_OF_THEM))
        return _on_hub(path, data_files, subset=subset, split=split, hub=hub, streaming=streaming)
    return take_split({"train": _files(path, None, key="dataset.path")}, split)


def _is_remote(data_files: Any) -> bool:
    values = data_files.values() if isinstance(data_files, Mapping) else [data_files]
    texts = [text for value in values for text in (value if isinstance(value, list | tuple) else [value])]
    return any(isinstance(text, str) and _ADDRESS.match(text) for text in texts)


def _splits_at(place: Path, data_files: Any, *, key: str) -> Mapping[str, Source]:
    """Split -> source, for an existing path."""
    if data_files:
        if not place.is_dir():
            raise ConfigError(Problem("dataset.path", f"'{shown(place)}' is a file, but dataset.data_files names others", do=_ONE_OF_THEM))
        return _splits_of_files(data_files, None, key=key, base=place)
    if place.is_file():
        return {"train": _files(str(place), None, key="dataset.path")}
    if not (place / "dataset_dict.json").exists() and not (place / "state.json").exists():
        return _splits_in_folder(place, key="dataset.path")
    try:
        saved: Dataset | DatasetDict = load_from_disk(str(place))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(Problem(shown(place), f"a dataset saved to disk that can't be read: {first_line(error)}")) from error
    parts = saved if isinstance(saved, DatasetDict) else {"train": saved}
    return {str(split): Table(f"{shown(place)} [{split}]", part) for split, part in parts.items()}


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
        raise ConfigError(Problem(key, f"{shown(unknown[0])} is of an unknown kind", f"Known: {_KINDS}", do))
    return Files(found, reader)


def _splits_in_folder(folder: Path, *, key: str) -> dict[str, Files]:
    """Split -> the data files of a directory; a file's name determines its split, by the rules of `datasets`."""
    try:
        patterns = get_data_patterns(str(folder))
    except EmptyDatasetError:
        patterns = {}
    splits: dict[str, Files] = {}
    for split, globs in patterns.items():
        named: dict[Path, None] = {}
        for glob in globs:
            try:
                named.update(dict.fromkeys(map(Path, resolve_pattern(glob, str(folder)))))
            except FileNotFoundError:  # one of a split's several patterns
                continue
        known = sorted(path for path in named if path.suffix.lower() in BY_SUFFIX)
        if known:
            splits[str(split)] = Files(known)
    if not splits:
        raise ConfigError(Problem(key, f"{shown(folder)} doesn't have data files", f"Known: {_KINDS}"))
    return splits


def _on_hub(path: str, data_files: Any, *, subset: str | None, split: str, hub: HubConf, streaming: bool) -> Source:
    """A split of a dataset on the hub, or of files at addresses; for those, `path` is the builder."""
    if streaming:
        streams = _load(path, subset, hub, data_files=data_files, streaming=True)
        return take_split({name: StreamSource(f"{path} [{name}]", stream) for name, stream in streams.items()}, split)
    read_split(split)
    return Table(f"{path} [{split}]", _load(path, subset, hub, data_files=data_files, split=split))


def _load(path: str, subset: str | None, hub: HubConf, **asked: Any) -> Any:
    set_proxies(hub.proxies)
    unreachable = None if hub.offline or path in BY_BUILDER else _why_unreachable(path, hub)
    config = DownloadConfig(token=hub.token, proxies=hub.proxies, local_files_only=hub.offline, max_retries=1)
    if hub.cache_dir is not None:
        config.cache_dir = f"{hub.cache_dir}/downloads"
    asked |= {"cache_dir": hub.cache_dir, "token": hub.token, "download_config": config}
    with _offline(hub.offline or unreachable is not None):
        try:
            found = datasets.load_dataset(path, subset, **asked)
        except (ConnectionError, FileNotFoundError, DatasetNotFoundError) as error:
            raise _not_found(path, unreachable, error, hub) from error
        except (ValueError, ImportError, HfHubHTTPError) as error:  # an unknown subset or split, or a missing package for an address
            text = str(error)  # a message of `datasets` (5.2)
            part = "split" if text.startswith("Unknown split") else "subset" if text.startswith("BuilderConfig") else "path"
            raise ConfigError(Problem(f"dataset.{part}", f"'{path}' can't be loaded: {first_line(error)}")) from error
        except DatasetGenerationError as error:
            raise DataError(Problem(path, f"its files can't be read: {first_line(error.__cause__ or error)}")) from error
    if unreachable is not None:
        log.warning("%s: the hub can't be reached (%s); reading the copy in the cache", path, unreachable)
    return found


def _why_unreachable(repository: str, hub: HubConf) -> str | None:
    """Why the hub doesn't answer for a repository; None if it does."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        HfApi(token=hub.token).dataset_info(repository, timeout=TIMEOUT_S)
    except RepositoryNotFoundError as error:
        do = f"Is it spelt right? A private one needs hub.token. {_LOCAL}"
        found = f"'{repository}' is neither a dataset on the hub nor a path on this machine"
        raise ConfigError(Problem("dataset.path", found, do=do)) from error
    except Exception as error:  # HTTP errors, and the transport's own, which differ with the version of huggingface_hub
        return first_line(error)
    return None


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """A context in which `datasets` and huggingface_hub, which read the environment at their import, don't use the network."""
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if wanted:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _not_found(path: str, unreachable: str | None, error: Exception, hub: HubConf) -> ConfigError:
    if hub.offline:
        found = f"'{path}' is not a path on this machine and not in the cache, and hub.offline=true prevents a download"
    elif unreachable is not None:
        found = f"'{path}' is not a path on this machine and not in the cache, and the hub can't be reached ({unreachable})"
    else:
        found = f"'{path}' can't be loaded: {first_line(error)}"
    return ConfigError(Problem("dataset.path", found, do=_LOCAL))

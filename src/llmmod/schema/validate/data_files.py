"""Data that is to be read from this disk and isn't there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmmod.errors import ConfigError, Problem
from llmmod.paths import find_files, resolve_path
from llmmod.schema.validate.context import Context

BUILDERS = ("json", "csv", "parquet", "arrow", "text")  # names by which `datasets` reads files, rather than places
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ADDRESS = re.compile(r"(?!pkg:)[a-z0-9]+://")


def check_data_files(context: Context) -> list[Problem]:
    """A problem for each place of a dataset in use that is neither on this disk nor a name on the hub."""
    datasets = {place: context.get(place) or {} for place in context.places("dataset")}
    # The datasets of a mix are looked at where the mix is.
    return [problem for place, dataset in datasets.items() if not dataset.get("mix") for problem in of_dataset(place, dataset)]


def of_dataset(place: str, dataset: dict[str, Any]) -> Iterator[Problem]:
    """A problem for each place of one dataset."""
    path, files, held_out = dataset.get("path"), dataset.get("data_files"), dataset.get("val_files")
    if path is None and not files:
        if dataset.get("_target_") == "llmmod.data.load.load_splits":
            yield Problem(f"{place}.path", "there is no data to read", do=f"Set {place}.path or {place}.data_files")
        return
    base = None
    if path is not None and not (path in BUILDERS and (files or not Path(path).exists())):
        located = yield from _located(path, f"{place}.path")
        base = located if files and isinstance(located, Path) and located.is_dir() else None
    if path in BUILDERS and not files and not Path(path).exists():
        yield Problem(f"{place}.path", f"'{path}' reads files, and none are given", do=f"Set {place}.data_files")
    if base is not None or path is None or path in BUILDERS:
        yield from _missing(files, f"{place}.data_files", base)
    yield from _missing(held_out, f"{place}.val_files", None)


def _located(path: str, key: str) -> Any:
    """The path on this disk, else None; the problem is yielded where it is no name on the hub either."""
    try:
        located = resolve_path(path, key=key)
        if isinstance(located, str) and not is_remote(path):
            find_files(path, key=key)
    except ConfigError as error:
        yield from error.problems
        return None
    return located if isinstance(located, Path) else None


def is_remote(path: str) -> bool:
    """Whether a path that isn't on this disk may be an address, or a dataset's name on the hub."""
    if _ADDRESS.match(path):
        return True
    return bool(_HUB_ID.fullmatch(path)) and not path.startswith(".") and not path.endswith(_SUFFIXES)


def _missing(files: Any, key: str, base: Path | None) -> Iterator[Problem]:
    named = [file for value in files.values() for file in _listed(value)] if isinstance(files, dict) else _listed(files)
    local = [file for file in named if isinstance(file, str) and not _ADDRESS.match(file)]
    try:
        find_files(local, key=key, base=base)
    except ConfigError as error:
        yield from error.problems


def _listed(files: Any) -> list[Any]:
    return files if isinstance(files, list) else [] if files is None else [files]

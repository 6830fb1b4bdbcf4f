"""Resolves a path of the configuration (on this disk, in an installed package, on the hub), and writes a file in one step.

`pkg://package/folder/file` names a file in an installed package, wherever it is installed and whether or not the install is editable. The
package is found but not imported, so its code doesn't run.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path

from llmmod.errors import ConfigError, Problem, did_you_mean, nearest

PACKAGE = "pkg://"
MAGIC = frozenset("*?[")
_PARTIAL = re.compile(r"\..+\.\d+")
_FULL_BYTES = 2**20  # a file system with less free space counts as full
_PROBE_BYTES = 2**25  # written where a library couldn't write, to learn the reason
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def resolve_path(text: str, *, key: str = "path") -> Path | str:
    """The local path that `text` names, or `text` itself if it isn't a path on this disk (a hub id, an address).

    Args:
        text: `pkg://package/path`, a path with or without `~`, or anything else.
        key: the configuration key it was typed for, for the message.

    Raises:
        ConfigError: `pkg://` names a package that isn't installed, or a file that the package doesn't have.
    """
    if text.startswith(PACKAGE):
        return _package_path(text, key)
    path = Path(text).expanduser()
    return path if path.exists() else text


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a name on the hub, `name` or `owner/name`; a path such as `./name` doesn't have it."""
    return _HUB_ID.fullmatch(text) is not None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path to write to; its file replaces `path` when the block ends. After an error, `path` is unchanged.

    So other processes, and later runs after a full disk or a kill, never read half a file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sweep_partial(directory: Path) -> None:
    """Remove temporary files of `atomic_write` that killed processes left; only for a directory that other processes don't write to."""
    for path in directory.glob(".*"):
        if _PARTIAL.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def find_files(patterns: str | Iterable[str], *, key: str, base: Path | None = None) -> list[Path]:
    """The files and directories that paths and globs name, each once, in the order given; those of a glob sorted by name.

    Args:
        patterns: a path, a glob (`**` too), a `pkg://` path, or several of them.
        key: the configuration key they were typed for, for the message.
        base: the directory that relative ones start from; None: the working directory.

    Raises:
        ConfigError: with every pattern that doesn't match, and the nearest name if one is close.
    """
    found: dict[Path, None] = {}
    problems: list[Problem] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            found.update(dict.fromkeys(_matches(str(pattern), key, base)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return list(found)


def shown(path: Path) -> str:
    """A path for messages: relative to the working directory if it is inside."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _matches(pattern: str, key: str, base: Path | None) -> list[Path]:
    path = _located(pattern, key, base)
    if path.exists():  # before globbing: a file's name may be `data[1].json`
        return [path]
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True)) if MAGIC & set(str(path)) else []
    if not matches:
        raise ConfigError(_missing(pattern, path, key))
    return [match for match in matches if match.is_file()] or matches  # `**` matches folders too


def _located(pattern: str, key: str, base: Path | None) -> Path:
    path = _package_path(pattern, key) if pattern.startswith(PACKAGE) else Path(pattern).expanduser()
    return base / path if base is not None else path  # an absolute path stays as it is


def _missing(pattern: str, path: Path, key: str) -> Problem:
    what = "no file matches" if MAGIC & set(pattern) else "no such file or directory:"
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = [pattern.removesuffix(path.name) + name for name in nearest(path.name, siblings)]
    meant = "" if str(path.absolute()) == pattern else f" ({path.absolute()})"
    return Problem(key, f"{what} '{pattern}'{meant}", f"Did you mean '{close[0]}'?" if close else "")


def _package_path(text: str, key: str) -> Path:
    package, _, inside = text.removeprefix(PACKAGE).partition("/")
    spec = _spec_of(package)
    if spec is None:
        raise ConfigError(Problem(key, f"'{text}': the package '{package}' isn't installed", do="Install it, or give a path"))
    folders = [Path(folder) for folder in spec.submodule_search_locations or [str(Path(str(spec.origin)).parent)]]
    candidates = [folder / inside if inside else folder for folder in folders]
    existing = next((path for path in candidates if path.exists()), None)
    if existing is None and not MAGIC & set(inside):
        siblings = candidates[0].parent
        names = [p.name for p in siblings.iterdir() if not p.name.startswith("_")] if siblings.is_dir() else []
        raise ConfigError(Problem(key, f"'{text}': the package doesn't have '{inside}'", did_you_mean(Path(inside).name, names)))
    return existing or candidates[0]


def _spec_of(package: str) -> ModuleSpec | None:
    """The spec of a dotted package name, without importing its parents (`importlib.util.find_spec` imports them)."""
    found: ModuleSpec | None = None
    parts = package.split(".")
    for count in range(1, len(parts) + 1):
        name, search = ".".join(parts[:count]), None if found is None else found.submodule_search_locations
        specs = (finder.find_spec(name, search) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        found = next((spec for spec in specs if spec is not None), None)
        if found is None:
            return None
    return found


def readable_by_umask(directory: Path) -> None:
    """Give a directory's safetensors files the mode of other new files: the library (0.8) makes them readable only for their owner."""
    files = [file for file in directory.glob("*.safetensors") if file.stat().st_mode & 0o777 == 0o600]
    if files:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".mode-") as made:
            (new := Path(made) / "new").touch()
            mode = new.stat().st_mode
        for file in files:
            file.chmod(mode)


def why_not_written(directory: Path) -> int | None:
    """The system's number of the reason why nothing more can be written to a directory: its disk is full, a quota or a limit is reached."""
    if not directory.is_dir():  # it was not about files
        return None
    if shutil.disk_usage(directory).free < _FULL_BYTES:
        return errno.ENOSPC
    largest = max((file.stat().st_size for file in directory.rglob("*") if file.is_file()), default=0)
    try:
        with (directory / "probe").open("wb", buffering=0) as file:
            for _ in range(_PROBE_BYTES // _FULL_BYTES):
                file.write(os.urandom(_FULL_BYTES))
            os.fsync(file.fileno())
            file.truncate(largest + _PROBE_BYTES)  # a limit of a file's size holds for the hole at its end too
    except OSError as error:
        return error.errno
    return None

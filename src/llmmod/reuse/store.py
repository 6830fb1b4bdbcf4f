"""Results of earlier runs' training steps, found by their fingerprint and reused in a run that would train the same again.

`result.json` in a step's directory is written last and has the fingerprint and the digest of every file. An index in the cache directory
has a small file for each such directory. A directory that is missing, incomplete or overwritten since is skipped, and the step is trained
again.

If you change the learning rate of the last of three steps, the run reuses the results of the other two. `reuse=false` trains them all;
later runs can still reuse their results.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from llmmod.cache.content import NoIdentityError, digest, file_digest
from llmmod.cache.store import cache_directory
from llmmod.distributed import rank, world_size
from llmmod.files.paths import atomic_write, shown
from llmmod.reuse.fingerprint import parts, weights_identity

log = logging.getLogger("llmmod.train")
NAME = "result.json"
_PARTS = "parts.json"  # in the index, next to the file named by the fingerprint
_ADAPTER = "adapter_config.json"
_BASE = "base_model_name_or_path"
_NAMED = 4  # at most so many changed parts in a message


@dataclass(frozen=True)
class Result:
    """A training step's result in its directory.

    Args:
        fingerprint: of the training.
        files: relative name -> digest; empty while it trains.
        metrics: as the step reports them.
        kind: `adapter` or `full`.
        ended: when the training ended, `2026-11-24 14:00`.
    """

    fingerprint: str
    files: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    kind: str = ""
    ended: str = ""


class ResultStore:
    """Result directories by the fingerprint of their training.

    Args:
        index: a directory; created with the first entry.
    """

    def __init__(self, index: Path) -> None:
        self._index = index

    def take(self, fingerprint: str, directory: Path) -> tuple[Result, Path] | None:
        """Copy the result of a training with this fingerprint into a step's directory; returns it and its original place, or None.

        Raises:
            OSError: the directory can't be written.
        """
        for place in self._places(fingerprint):
            result = read_result(place)
            if result is None or result.fingerprint != fingerprint or not result.files:
                continue
            if place == directory.absolute():
                if _is_whole(place, result):
                    return result, place
            elif (copied := _copy(place, result, directory)) is not None:
                self._enter(fingerprint, directory)
                return copied, place
        return None

    def changed(self, parts: Mapping[str, str], step: str) -> tuple[list[str], Path] | None:
        """The parts in which a training differs from the newest result of a step with that name, and its place; None without a result."""
        for entry in _newest(self._index.glob("*/*.txt")):
            with suppress(OSError, ValueError):
                place = Path(entry.read_text(encoding="utf-8"))
                result = read_result(place) if place.name == step else None
                if result is not None and result.files and result.fingerprint == entry.parent.name:
                    before = json.loads((entry.parent / _PARTS).read_text(encoding="utf-8"))
                    return [name for name in {**before, **parts} if before.get(name) != parts.get(name)], place
        return None

    def keep(
        self, directory: Path, fingerprint: str, *, metrics: Mapping[str, float], kind: str, parts: Mapping[str, str] | None = None
    ) -> None:
        """Add a training's result to the index, with the parts of its fingerprint, so that later runs can name what changed."""
        write_result(directory, Result(fingerprint, _digests(directory), metrics, kind, time.strftime("%Y-%m-%d %H:%M")))
        self._enter(fingerprint, directory, parts)

    def _places(self, fingerprint: str) -> list[Path]:
        """The directories in the index, newest first; entries of missing ones are removed."""
        found = []
        for entry in _newest((self._index / fingerprint).glob("*.txt")):
            with suppress(OSError):  # another process may take it away, too
                place = Path(entry.read_text(encoding="utf-8"))
                if place.is_dir():
                    found.append(place)
                else:
                    entry.unlink()
        return found

    def _enter(self, fingerprint: str, directory: Path, parts: Mapping[str, str] | None = None) -> None:
        place = str(directory.absolute())
        try:
            (self._index / fingerprint).mkdir(parents=True, exist_ok=True)
            if parts is not None:
                _write(self._index / fingerprint / _PARTS, json.dumps(parts))
            _write(self._index / fingerprint / f"{digest(place)}.txt", place)
        except OSError as error:
            log.warning("later runs won't find %s (%s); set LLMMOD_CACHE to another directory", place, error)


def _newest(entries: Iterable[Path]) -> list[Path]:
    """The files that exist, the latest written first."""
    times = {}
    for entry in entries:
        with suppress(OSError):  # another process may take it away, too
            times[entry] = entry.stat().st_mtime_ns
    return sorted(times, key=times.__getitem__, reverse=True)


def read_result(directory: Path) -> Result | None:
    """The result in a directory's result.json; None without one."""
    with suppress(OSError, ValueError, TypeError):
        return Result(**json.loads((directory / NAME).read_text(encoding="utf-8")))
    return None


def write_result(directory: Path, result: Result) -> None:
    """Write result.json in one step."""
    _write(directory / NAME, json.dumps(asdict(result), indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _digests(directory: Path) -> dict[str, str]:
    """Digests of a finished training's files, without checkpoints and partial files."""
    paths = [path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.is_file()]
    own = [path for path in paths if not path.parts[0].startswith(("checkpoint-", ".")) and path.name != NAME]
    return {path.as_posix(): file_digest(directory / path) for path in own}


def _is_whole(directory: Path, result: Result) -> bool:
    with suppress(OSError, NoIdentityError):
        return all(file_digest(directory / name) == expected for name, expected in result.files.items())
    return False


def _copy(place: Path, result: Result, directory: Path) -> Result | None:
    """Copy a result, and check the copy, since the original may be deleted meanwhile. None if it is incomplete."""
    made = Path(tempfile.mkdtemp(prefix=".taken-", dir=directory))
    try:
        for name in result.files:
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(place / name, made / name)
            except FileNotFoundError:
                return None
        if not _is_whole(made, result):
            log.warning("the result in %s is damaged, so it is not reused", place)
            return None
        _move_base(made / _ADAPTER, place.parent, directory.absolute().parent)
        for name in result.files:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).replace(directory / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    copied = replace(result, files={name: file_digest(directory / name) for name in result.files})
    write_result(directory, copied)
    return copied


def _move_base(config: Path, before: Path, after: Path) -> None:
    """If an adapter's base is a directory of its run, change it to this run's directory."""
    with suppress(OSError, ValueError):
        read = json.loads(config.read_text(encoding="utf-8"))
        base = Path(str(read.get(_BASE)))
        if base.is_relative_to(before):
            read[_BASE] = str(after / base.relative_to(before))
            config.write_text(json.dumps(read, indent=2, sort_keys=True), encoding="utf-8")


class Reuse:
    """Reuse of earlier runs' results for a training step; only the first of several processes searches.

    Args:
        session: of the run.
        step: that trains.
        args: its trainer's arguments.
        data: the identity of its examples.
        checkpoint: to resume from, unless the training has ended already.
    """

    def __init__(self, session: Any, step: str, *, args: Any, data: str | None, checkpoint: Path | None) -> None:
        self._directory, self._step = session.step_dir(step), step
        self._key: str | None = None
        self._parts: dict[str, str] = {}
        self._takes = session.trains_several and session.root.reuse
        if rank() == 0 and session.trains_several:
            self._results = ResultStore(cache_directory(session.root.hub.cache_dir) / "trained")
            self._key = self._fingerprint(session, args, data)
        if checkpoint is not None and self._key != getattr(read_result(checkpoint.parent), "fingerprint", None):
            self._key = None  # the checkpoint is from another training, and the result depends on it

    def take(self) -> tuple[Result, Path] | None:
        """An earlier run's result, copied into the step's directory, and its original place; None if the step has to be trained."""
        found = [self._results.take(self._key, self._directory) if self._takes and self._key is not None else None]
        if self._takes and world_size() > 1:
            broadcast_object_list(found)
        if found[0] is None and rank() == 0:
            if self._takes and self._key is not None:
                self._tell()
            self._begin()
        return found[0]

    def keep(self, *, metrics: Mapping[str, float], kind: str) -> None:
        """Make the trained result available to later runs."""
        if self._key is not None:
            self._results.keep(self._directory, self._key, metrics=metrics, kind=kind, parts=self._parts)

    @property
    def identity(self) -> str | None:
        """The identity of the weights in the directory; None if they can't be identified."""
        return None if self._key is None else weights_identity(self._directory, self._key)

    def _tell(self) -> None:
        """Log why the step is trained although an earlier run has trained a step of that name."""
        names, place = self._results.changed(self._parts, self._step) or ([], None)
        if place is not None and names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            log.info("%s: trained, since this differs from %s: %s%s", self._step, shown(place), ", ".join(names[:_NAMED]), more)

    def _begin(self) -> None:
        """Mark the directory's earlier result as invalid from now on."""
        (self._directory / NAME).unlink(missing_ok=True)
        if self._key is not None:
            write_result(self._directory, Result(self._key))

    def _fingerprint(self, session: Any, args: Any, data: str | None) -> str | None:
        try:
            self._parts = parts(session, self._step, args=args, data=data)
            return digest(self._parts)
        except (NoIdentityError, OSError) as error:  # a file that isn't needed may be unreadable
            log.info("%s: later runs can't reuse it: %s", self._step, error)
            return None

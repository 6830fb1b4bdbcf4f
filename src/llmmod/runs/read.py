"""A run, read from its directory: configuration, results, and the trainers' logs.

A run can end at any point, so any file may be missing; values that are missing or unreadable are empty here. Values of keys that hold a
token or a proxy are secret and are replaced wherever they were typed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmmod.config.compose import resolved
from llmmod.upstream import MAIN, installed, processor

RECORD, METRICS, STATE = "run.json", "metrics.json", "trainer_state.json"
_SECRET = re.compile(r"(^|[._+])(hub_)?token$|(^|[._])proxies($|\.)")
_HIDDEN = "***"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Fields of a log entry that give its time or the speed, rather than a measure of the training.
_OF_THE_CLOCK = re.compile(r"^(epoch|step|total_flos|num_input_tokens_seen|num_tokens)$|_(runtime|per_second|preparation_time)$")
_SMOOTHING = 0.8  # weight of the average so far at each new point
History = list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """A run's files as values.

    Args:
        directory: absolute path.
        record: content of run.json.
        metrics: content of metrics.json.
        config: the composed configuration as key -> value, down to the leaves, interpolations resolved.
        overrides: as typed.
        choices: group -> option.
        histories: step -> its trainer's log.
    """

    directory: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    histories: Mapping[str, History] = field(default_factory=dict)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The steps of run.json, in order."""
        return _mappings(self.record.get("steps"))

    @property
    def data(self) -> list[dict[str, Any]]:
        """The descriptions of the datasets that were read."""
        return _mappings(self.record.get("data"))

    @property
    def versions(self) -> dict[str, str]:
        """Library -> version, the machine, and the git revision."""
        parts = (self.record.get("versions"), self.record.get("machine"))
        known = {str(name): str(version) for part in parts if isinstance(part, dict) for name, version in part.items()}
        return known | {"git": str(self.record.get("git_revision") or "not in a checkout")}

    @property
    def command(self) -> str:
        """The command line of the run, without secrets."""
        return shlex.join(["llmmod", *map(without_secret, self.overrides)])

    @property
    def files(self) -> Iterator[Path]:
        """Its files, sorted, relative to its directory, without hidden ones."""
        for path in sorted(self.directory.rglob("*")):
            relative = path.relative_to(self.directory)
            if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                yield relative


def read_run(directory: Path) -> Run:
    """The run in a directory. The run may be incomplete; for any other directory the result is empty."""
    plain = _yaml(directory / ".hydra" / "config.yaml")
    hydra = _yaml(directory / ".hydra" / "hydra.yaml")
    overrides = _yaml(directory / ".hydra" / "overrides.yaml")
    chosen = _inner(hydra, "hydra", "runtime", "choices")
    return Run(
        directory.absolute(),
        _json(directory / RECORD),
        _json(directory / METRICS),
        flat(_resolved(plain)) if isinstance(plain, dict) else {},
        [str(item) for item in overrides] if isinstance(overrides, list) else [],
        {str(group): str(option) for group, option in chosen.items() if not str(group).startswith("hydra/")},
        _histories(directory),
    )


def measures(name: str) -> bool:
    """Whether a metric measures the model rather than time."""
    return not _OF_THE_CLOCK.search(name)


@cache
def code_digest() -> str:
    """SHA-256 of llmmod's own files, 64 hex digits. A version or a commit does not show uncommitted changes. Read once a process."""
    package = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def surroundings() -> dict[str, Any]:
    """What a run depends on besides its configuration and its data, as run.json has it: versions, llmmod's own files, the machine."""
    machine = {"processor": processor(), "cpu_count": os.cpu_count(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
    versions = {name: installed(name) for name in MAIN}
    return {"versions": versions, "git_revision": git_revision(), "code": code_digest(), "machine": machine}


def git_revision() -> str | None:
    """The commit checked out where the run was started, else the one llmmod runs from; None outside a checkout."""
    for directory in (Path.cwd(), Path(__file__).parent):
        command = ["git", "-C", str(directory), "rev-parse", "HEAD"]
        with suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
            return found.stdout.strip()
    return None


def read_lines(path: Path, most: int) -> list[dict[str, Any]]:
    """The first objects of a JSON Lines file, at most `most`; empty without the file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            read = [json.loads(line) for line in islice(file, most)]
    except (OSError, ValueError):
        return []
    return [line for line in read if isinstance(line, dict)]


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Key -> value of nested mappings, down to the leaves; lists and empty mappings are leaves. Secrets are replaced."""
    if isinstance(value, Mapping) and value:
        return {name: leaf for part, inner in value.items() for name, leaf in flat(inner, f"{key}.{part}" if key else str(part)).items()}
    return {key: _HIDDEN if value is not None and _SECRET.search(key) else value}


def without_secret(override: str) -> str:
    """An override with a secret value replaced."""
    key, equals, _ = override.partition("=")
    return f"{key}={_HIDDEN}" if equals and _SECRET.search(key) else override


def series(history: History) -> dict[str, list[tuple[float, float]]]:
    """Name -> (optimizer step, value) of every measure in a log, in order of first appearance."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in history:
        step = entry.get("step")
        if not isinstance(step, int | float):
            continue
        for name, value in entry.items():
            if isinstance(value, int | float) and measures(name):
                found.setdefault(name, []).append((step, value))
    return found


def smoothed(values: Sequence[float], keep: float = _SMOOTHING) -> list[float]:
    """The exponential moving average with bias correction (Kingma & Ba 2015, section 3); values that are not finite are skipped."""
    average, weight, averages = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        averages.append(average / weight if weight else math.nan)
    return averages


def _histories(directory: Path) -> dict[str, History]:
    """The log of each training step; for an unfinished one, the log in its newest checkpoint."""
    found = {}
    for step in sorted(directory.iterdir()) if directory.is_dir() else ():
        numbered = {int(match[1]): path for path in step.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(path.name))}
        for place in [step, *(numbered[number] for number in sorted(numbered, reverse=True))]:
            history = _json(place / STATE).get("log_history")
            if isinstance(history, list) and history:
                found[step.name] = [entry for entry in history if isinstance(entry, dict)]
                break
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _resolved(plain: dict[str, Any]) -> dict[str, Any]:
    try:
        return resolved(OmegaConf.create(plain))[0]
    except OmegaConfBaseException:
        return plain


def _mappings(found: Any) -> list[dict[str, Any]]:
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _inner(node: Any, *names: str) -> dict[str, Any]:
    for name in names:
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}

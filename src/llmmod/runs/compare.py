"""The differences of two runs: configuration, data, versions, code and results, in this order.

Causes come first: if the configuration differs, the rest may follow from it. Everything is read from the runs' directories, without a
model. Values that only measure time, such as seconds and tokens per second, are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from llmmod.errors import ConfigError, Problem
from llmmod.pages.page import Chart, Line, chart, page
from llmmod.runs.read import RECORD, History, Run, measures, read_run, series

_ABSENT = "not there"
_NOT_COMPARED = ("output_dir", "auto_resume", "replay")  # the run's directory, and the way it was started
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_MOST_CHARACTERS = 300


class Difference(NamedTuple):
    """An item whose values differ in two runs, as text."""

    what: str
    one: str
    other: str


class Section(NamedTuple):
    """The differences of one kind.

    Args:
        name: the kind.
        differences: empty if both runs are the same.
        note: what can't be compared since a run doesn't record it; may be empty.
    """

    name: str
    differences: list[Difference]
    note: str = ""

    @property
    def verdict(self) -> str:
        """The number of differences, in words."""
        count = len(self.differences)
        found = f"{count} difference{'' if count == 1 else 's'}" if count else "not known" if self.note else "the same"
        return f"{found} ({self.note})" if self.note else found


def open_run(path: str, key: str) -> Run:
    """The run in a directory that a user gave.

    Raises:
        ConfigError: the directory is missing, or not a run's.
    """
    directory = Path(path).expanduser()
    if not (directory / RECORD).is_file():
        found = f"{directory} doesn't have a {RECORD}" if directory.is_dir() else f"{directory} is not a directory"
        raise ConfigError(Problem(key, found, do="Give the directory of a run, such as outputs/sft-smollm2-lora/2026-11-28_10-00-00"))
    return read_run(directory)


def differences(one: Run, other: Run) -> list[Section]:
    """All sections in order, including those without differences."""
    return [
        Section("configuration", _configuration(one, other), "" if one.config and other.config else "a run lacks .hydra/config.yaml"),
        data_compared(one, other),
        *surroundings_compared(one, other),
        Section("metrics", _metrics(one, other)),
        Section("history", _histories(one, other)),
        Section("weights", _weights(one, other)),
    ]


def surroundings_compared(one: Run, other: Run) -> list[Section]:
    """The sections of versions and of code."""
    versions = _of_mappings(one.versions, other.versions, without=("git",))
    return [Section("versions", versions), Section("code", _code(one, other))]


def data_compared(one: Run, other: Run) -> Section:
    """The section of the data."""
    return Section("data", *_data(one, other))


def lines(one: Run, other: Run, found: list[Section]) -> list[str]:
    """The comparison as lines for a terminal."""
    written = [f"one:   {one.directory}", f"other: {other.directory}"]
    for section in found:
        written.append(f"{section.name}: {section.verdict}")
        width = max((len(difference.what) for difference in section.differences), default=0)
        written += [f"  {what.ljust(width)}  {before} -> {after}" for what, before, after in section.differences]
    return written


def comparison_page(one: Run, other: Run, found: list[Section]) -> str:
    """The comparison as an HTML page; each chart has the curves of both runs."""
    charts = list(_charts(one, other))
    return page("llmmod.runs", "compare.html", one=str(one.directory), other=str(other.directory), sections=found, charts=charts)


def weights_of(run: Run) -> dict[str, Path]:
    """Relative path -> file, for all weights that the steps wrote, without checkpoints."""
    paths = [path for path in run.files if path.suffix in _WEIGHTS and not any(part.startswith("checkpoint-") for part in path.parts)]
    return {path.as_posix(): run.directory / path for path in paths if len(path.parts) > 1}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _configuration(one: Run, other: Run) -> list[Difference]:
    if not one.config or not other.config:
        return []
    options = _of_mappings(one.choices, other.choices) if one.choices and other.choices else []
    return options + _of_mappings(one.config, other.config, without=_NOT_COMPARED)


def _data(one: Run, other: Run) -> tuple[list[Difference], str]:
    """Differences of the data that the steps read, by digest; data without a digest is compared by its description."""
    known = [{f"{account.get('name')}, read by {account.get('step')}": account for account in run.data} for run in (one, other)]
    found, unknown = [], []
    for name in dict.fromkeys([*known[0], *known[1]]):
        accounts = [accounts.get(name) for accounts in known]
        if None in accounts:
            found.append(Difference(name, *("read" if account else _ABSENT for account in accounts)))
            continue
        contents = [(account or {}).get("content") or {} for account in accounts]
        if not contents[0] or not contents[1]:
            unknown.append(name)
        found += [Difference(f"rows of {what}", before, after) for what, before, after in _of_mappings(*contents)]
        described = [(account or {}).get("lines") for account in accounts]
        if contents[0] == contents[1] and described[0] != described[1]:
            found.append(Difference(name, *("; ".join(map(str, lines or [])) for lines in described)))
    if unknown:
        return found, f"without a digest: {', '.join(unknown)}"
    return found, "" if known[0] or known[1] else "not read by any step"


def _code(one: Run, other: Run) -> list[Difference]:
    """The digest of llmmod's own files; the commit too, if a run lacks the digest or the commit explains the difference."""
    codes = [str(run.record.get("code") or "") for run in (one, other)]
    commits = [run.versions["git"] for run in (one, other)]
    found = [Difference("llmmod's files", *codes)] if all(codes) and codes[0] != codes[1] else []
    return found + ([Difference("git revision", *commits)] if commits[0] != commits[1] else [])


def _metrics(one: Run, other: Run) -> list[Difference]:
    status = [str(run.record.get("status") or "unknown") for run in (one, other)]
    ended = [Difference("status", *status)] if status[0] != status[1] else []
    return ended + _of_mappings(*({name: value for name, value in run.metrics.items() if measures(name)} for run in (one, other)))


def _histories(one: Run, other: Run) -> list[Difference]:
    """The first line of each training's log that differs."""
    found = []
    for step in dict.fromkeys([*one.histories, *other.histories]):
        pairs = zip_longest(*(_measured(run.histories.get(step, [])) for run in (one, other)))
        first = next(((before, after) for before, after in pairs if before != after), None)
        if first is not None:
            at = next(entry["step"] for entry in first if entry and "step" in entry)
            changed = _of_mappings(*(entry or {} for entry in first), without=("step",))
            found += [Difference(f"{step}, step {at}: {name}", before, after) for name, before, after in changed]
    return found


def _measured(history: History) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name == "step" or measures(name)} for entry in history if "step" in entry]


def _weights(one: Run, other: Run) -> list[Difference]:
    files = [weights_of(run) for run in (one, other)]
    hashes = [{name: file_hash(path) for name, path in some.items()} for some in files]
    return [Difference(what, before[:16], after[:16]) for what, before, after in _of_mappings(*hashes)]


def _of_mappings(one: Mapping[str, Any], other: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> list[Difference]:
    names = [name for name in dict.fromkeys([*one, *other]) if name not in without]
    missing = object()
    pairs = [(name, one.get(name, missing), other.get(name, missing)) for name in names]
    texts = [(name, *(_ABSENT if value is missing else _text(value) for value in pair)) for name, *pair in pairs if pair[0] != pair[1]]
    return [Difference(*text) for text in texts if text[1] != text[2]]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return repr(value) if value == value else "nan"
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return said if len(said) <= _MOST_CHARACTERS else f"{said[:_MOST_CHARACTERS]} …"


def _charts(one: Run, other: Run) -> Iterator[Chart]:
    """Charts of the values that both trainings log."""
    for step in dict.fromkeys([*one.histories, *other.histories]):
        both = [series(run.histories.get(step, [])) for run in (one, other)]
        for name in ("loss", "eval_loss", "reward", "eval_reward", *(name for name in both[0] if name.startswith("eval_predict_"))):
            drawn = [Line(who, values.get(name, [])) for who, values in zip(("one", "other"), both, strict=True)]
            made = chart(f"{step}: {name}", drawn, logarithmic=name.endswith("loss"))
            if made is not None:
                yield made


def first_cause(found: list[Section]) -> str:
    """The first difference, in a line; empty without a difference."""
    for section in found:
        for what, before, after in section.differences[:1]:
            more = f", and {len(section.differences) - 1} more" if len(section.differences) > 1 else ""
            return f"{section.name}: {what} {before} -> {after}{more}"
    return ""



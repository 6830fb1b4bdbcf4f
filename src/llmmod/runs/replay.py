"""`replay=<a run's directory>`: repeat a run in a new directory, and compare the bytes of the results.

It runs the configuration recorded in the run's `.hydra/`, not what its overrides mean today: if an option or a default has changed since,
the recorded value is set as an override. The output directory and the way the run was started are not copied. Results of earlier runs are
not reused, so every step does its work. Trust in a checkpoint's own code is never taken from a file; it has to be typed again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from llmmod.errors import ConfigError, Problem
from llmmod.files.paths import atomic_write
from llmmod.pages.page import write_page
from llmmod.runs.compare import (
    Section,
    comparison_page,
    data_compared,
    differences,
    file_hash,
    first_cause,
    lines,
    open_run,
    surroundings_compared,
    weights_of,
)
from llmmod.runs.read import Run, read_run, surroundings

KEY = "replay"
_NAME, _PAGE = "replay.json", "compare.html"
# Keys for the run's directory, the way it was started, and the reuse of earlier results.
_NOT_REPLAYED = re.compile(r"^(output_dir|auto_resume|replay|reuse|sweep(\..+)?|hydra([./].+)?|(.+\.)?resume_from_checkpoint)$")
_TRUST = re.compile(r"(^|\.)trust_remote_code$")
_ESCAPED, _ESCAPE = re.compile(r"[\\()\[\]{}:=, \t]"), r"\\\g<0>"  # for keys, which can't be quoted in Hydra's grammar
_TYPED_BESIDE = ("output_dir",)


def asked_for(overrides: Sequence[str]) -> str | None:
    """The directory of `replay=…` on a command line, or None."""
    found = [text.partition("=")[2] for text in overrides if _key(text) == KEY and "=" in text]
    return found[-1].strip("'\"") if found else None


def replayed_overrides(run: Run, typed: Sequence[str]) -> list[str]:
    """The overrides of a run, plus those that may be typed with `replay`: `output_dir`, and trust in a checkpoint's own code.

    Raises:
        ConfigError: another override is typed, the run's configuration isn't recorded, or the run trusted code that isn't trusted now.
    """
    beside = [text for text in typed if _key(text) != KEY]
    other = [text for text in beside if _key(text) not in _TYPED_BESIDE and not _TRUST.search(_key(text))]
    if other:
        do = f"Leave it out, or run that configuration yourself: {run.command}"
        raise ConfigError([Problem(_key(text), f"typed with {KEY}, which repeats a run unchanged", do=do) for text in other])
    if not run.config:
        raise ConfigError(Problem(KEY, f"{run.directory} doesn't have .hydra/config.yaml, the record of what was run"))
    trusted = {_key(text) for text in beside if _TRUST.search(_key(text))}
    for key, value in run.config.items():
        if _TRUST.search(key) and value is True and key not in trusted:
            raise ConfigError(Problem(key, "true in that run, but not on this command line", do=f"If you trust that code, add {key}=true"))
    recorded = yaml.safe_load((run.directory / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")) if run.overrides else []
    kept = [str(text) for text in recorded if not _NOT_REPLAYED.match(_key(text)) and not _TRUST.search(_key(text))]
    return [*kept, "reuse=false", *beside]


def changed_since(run: Run, config: DictConfig) -> list[str]:
    """Overrides that restore a run's recorded values where options or defaults have changed since.

    Args:
        run: the run to repeat.
        config: what its overrides compose to now.
    """
    recorded = yaml.safe_load((run.directory / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
    now: Any = OmegaConf.to_container(config, resolve=False)
    pairs = _differing(recorded, yaml.safe_load(OmegaConf.to_yaml(OmegaConf.create(now))))
    return [f"++{key}={_written(value)}" for key, value in pairs if not _NOT_REPLAYED.match(key) and not _TRUST.search(key)]


def otherwise_now(run: Run) -> list[str]:
    """What is not as it was when a run was run, of versions, machine and llmmod's own code: a line each."""
    return _said(surroundings_compared(run, Run(run.directory, surroundings()))) if run.record.get("versions") else []


def other_data(run_dir: str, account: Mapping[str, Any]) -> list[str]:
    """What of a dataset is not as it was when a run was run, a line each.

    Args:
        run_dir: the run's directory.
        account: of the dataset as it was read now; see `Session.data`.
    """
    run = read_run(Path(run_dir))
    before = [known for known in run.data if all(known.get(key) == account[key] for key in ("step", "name"))]
    if not before:  # it read none in that step, or it is an older one's account
        return []
    return _said([data_compared(Run(run.directory, {"data": before}), Run(run.directory, {"data": [dict(account)]}))])


def _said(sections: list[Section]) -> list[str]:
    return [f"{section.name}: {what} {one} -> {other}" for section in sections for what, one, other in section.differences]


def conclude(run: Run, directory: Path) -> tuple[list[str], bool]:
    """The outcome of a replay in lines, and whether its bytes are the same.

    Args:
        run: the original run.
        directory: the new run's directory; replay.json and compare.html are written into it.
    """
    again = open_run(str(directory), KEY)
    found = [_replayed(section) for section in differences(run, again)]
    came_to = [section for section in found if section.name in ("history", "metrics", "weights")]
    same = not any(section.differences for section in came_to)
    # A final metric differs because something before it does, so the first difference is reported.
    first = first_cause(sorted(found, key=lambda section: section.name in ("metrics", "weights")))
    weights = {name: file_hash(path) for name, path in weights_of(again).items()}
    if same:
        said = [f"{KEY}: the same bytes: {name}, SHA-256 {digest}" for name, digest in weights.items()]
        said += [] if weights else [f"{KEY}: the same metrics and the same log; neither run wrote weights"]
    else:
        said = [f"{KEY}: not the same. First differs: {first}", *(f"  {line}" for line in lines(run, again, found))]
        said += _unrecorded(found)
    content = {"of": str(run.directory), "same": same, "first_difference": first or None, "weights": weights}
    with atomic_write(directory / _NAME) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_page(directory / _PAGE, comparison_page(run, again, found))
    return [*said, f"{KEY}: the comparison is {directory / _PAGE}"], same


def _replayed(section: Section) -> Section:
    """A section without the differences that a replay always has."""
    kept = [difference for difference in section.differences if section.name != "configuration" or not _NOT_REPLAYED.match(difference.what)]
    return section._replace(differences=kept)


def _unrecorded(found: list[Section]) -> list[str]:
    causes = [section for section in found if section.name in ("configuration", "data", "versions", "code")]
    if any(section.differences for section in causes):
        return []
    return [f"{KEY}: the records of the runs don't explain it: bits also depend on the processor and on the algorithms of a GPU's kernels"]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _differing(recorded: Any, now: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a recorded configuration that differ now; if a key in a mapping has a dot, the mapping as a whole."""
    whole = not isinstance(recorded, Mapping) or not recorded or any("." in str(name) for name in recorded)
    if whole:
        if recorded != now:
            yield place, recorded
        return
    for name, value in recorded.items():
        there = now.get(name) if isinstance(now, Mapping) else None
        if value is None and not (isinstance(now, Mapping) and name in now):
            yield f"{place}.{name}" if place else str(name), None
        else:
            yield from _differing(value, there, f"{place}.{name}" if place else str(name))


def _written(value: Any) -> str:
    """A value in Hydra's grammar of overrides."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_ESCAPED.sub(_ESCAPE, str(name))}:{_written(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_written, value)) + "]"
    # A backslash is literal unless it precedes a quote or ends the text.
    quoted = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), str(value))
    return f"'{quoted}'"

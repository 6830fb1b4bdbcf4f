"""The results of a sweep, read from its directory: jobs, table, best job, and the command that runs that job alone.

`sweep.json` has the command line and its jobs, so that `sweep.resume` knows which are missing. Each job's directory says how it ended. So
the results are the same with every launcher, and a killed sweep has results too.
"""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmmod.files.paths import atomic_write
from llmmod.runs.read import without_secret

MANIFEST = "sweep.json"
PRUNED = "pruned"
_NO_NUMBER = "-"
_GONE = "it left no run.json"


@dataclass(frozen=True)
class Goal:
    """The metrics that a sweep optimizes, each with its direction."""

    metrics: tuple[str, ...] = ("eval_loss",)
    maximize: tuple[bool, ...] = (False,)

    @classmethod
    def of(cls, sweep: Any) -> Goal:
        """From `sweep.metric` and `sweep.direction`, each a text or a list; a single direction applies to all metrics."""
        metrics = [sweep.metric] if isinstance(sweep.metric, str) else list(sweep.metric)
        directions = [sweep.direction] * len(metrics) if isinstance(sweep.direction, str) else list(sweep.direction)
        return cls(tuple(metrics), tuple(direction == "maximize" for direction in directions))

    def values(self, metrics: dict[str, float]) -> list[float] | None:
        """The values of a job's metrics; None if one is missing or not a finite number."""
        found = [metrics.get(name) for name in self.metrics]
        if any(isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) for value in found):
            return None
        return [float(value) for value in found if value is not None]


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its number, its own overrides, how it ended, its metrics, and its error if it has one."""

    number: str
    overrides: dict[str, str]
    status: str
    metrics: dict[str, float]
    error: str | None
    directory: Path | None = None
    exit_code: int | None = None
    arguments: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its number, or its overrides if it was not given a number."""
        return self.number if self.number != _NO_NUMBER else " ".join(f"{key}={value}" for key, value in self.overrides.items())

    @property
    def ended_well(self) -> bool:
        """Whether it completed or was pruned, so that it needn't run again."""
        return self.status in ("completed", PRUNED)


def read_jobs(sweep_dir: Path) -> list[Job]:
    """The jobs of a sweep in the order of their numbers; planned jobs without a directory are `missing`."""
    directories = [d for d in sweep_dir.iterdir() if (d / ".hydra" / "overrides.yaml").is_file()]
    jobs = [read_job(d) for d in directories]
    there = [sorted(job.arguments) for job in jobs]
    for planned in read_manifest(sweep_dir).get("jobs", []):
        if sorted(planned["overrides"]) not in there:
            overrides = planned["overrides"]
            jobs.append(Job(str(planned["number"]), _split_overrides(overrides), "missing", {}, "it was not run", arguments=overrides))
    return sorted(jobs, key=lambda job: (not job.number.isdigit(), int(job.number) if job.number.isdigit() else 0, job.number))


def read_manifest(sweep_dir: Path) -> dict[str, Any]:
    """The content of `sweep.json`: the command line's arguments, and jobs with number and overrides; empty without that file."""
    try:
        manifest = json.loads((sweep_dir / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def refused_job(overrides: Sequence[str], error: str) -> Job:
    """A job that was refused, so it has neither number nor directory."""
    return Job(_NO_NUMBER, _split_overrides(overrides), "refused", {}, error)


def table(jobs: list[Job]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the job, each override that differs between jobs, the status, then all metrics."""
    varied, measured = varied_keys(jobs), _keys(j.metrics for j in jobs)
    header = ["job", *varied, "status", *measured]
    rows = [
        [job.number, *(job.overrides.get(k, "") for k in varied), job.status, *(_metric_text(job.metrics.get(k)) for k in measured)]
        for job in jobs
    ]
    return header, rows


def varied_keys(jobs: list[Job]) -> list[str]:
    """The overrides that differ between jobs."""
    return [k for k in _keys(j.overrides for j in jobs) if len({j.overrides.get(k) for j in jobs}) > 1]


def write_leaderboard(sweep_dir: Path, jobs: list[Job]) -> Path:
    """Write the table as `leaderboard.csv` in the sweep's directory."""
    header, rows = table(jobs)
    path = sweep_dir / "leaderboard.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def ranked(jobs: list[Job], goal: Goal) -> list[Job]:
    """The jobs from best to worst by the first metric; jobs that didn't complete or lack it come last, in their order."""
    return sorted(jobs, key=lambda job: _rank(job, goal))


def best_jobs(jobs: list[Job], goal: Goal) -> list[Job]:
    """The best completed job; with several metrics, the Pareto front."""
    valued = [(job, _costs(job, goal)) for job in ranked(jobs, goal) if job.status == "completed"]
    scored = [(job, costs) for job, costs in valued if costs is not None]
    if len(goal.metrics) == 1:
        return [job for job, _ in scored[:1]]
    return [job for job, costs in scored if not any(_dominates(other, costs) for _, other in scored)]


def command_of(job: Job, flags: Sequence[str] = ()) -> str:
    """The command that runs a job alone, ready to type.

    Args:
        job: a job of a sweep.
        flags: flags of the sweep's command line that a single run needs too: `--config-dir`, `--config-name`, `--allow` with their values.
    """
    own = [without_secret(text) for text in job.arguments if not text.lstrip("+").startswith("sweep.")]
    return shlex.join(["llmmod", *flags, *own])


def printed(jobs: list[Job], most_metrics: int = 6, *, first: Sequence[str] = ()) -> str:
    """The table for a terminal, with at most `most_metrics` metrics: those that differ, and those that people compare first.

    If a run has several steps of a kind, it shows each one's metrics instead of the last one's under the plain name.

    Args:
        jobs: a row each.
        most_metrics: columns.
        first: metrics that are always shown.
    """
    header, rows = table(jobs)
    begin = header.index("status") + 1
    named = {name.partition("/")[2] for name in header} - set(first)
    shown = [i for i in range(begin, len(header)) if header[i] not in named and not header[i].endswith("_before")]
    alike = {i: len({row[i] for row in rows}) == 1 for i in shown}
    order = sorted(shown, key=lambda i: (header[i] not in first, not _is_measured_on_validation(header[i]), alike[i], i))[:most_metrics]
    keep = [*range(begin), *sorted(order)]
    lines = [[header[i] for i in keep], *([row[i] for i in keep] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(keep))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def read_job(directory: Path) -> Job:
    """A job, read from its directory."""
    overrides = yaml.safe_load((directory / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")) or []
    try:
        run = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run = {"status": "failed", "error": _GONE}
    try:
        metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        metrics = {}
    return Job(
        directory.name,
        _split_overrides(overrides),
        run["status"],
        metrics,
        run.get("error"),
        directory,
        run.get("exit_code"),
        list(overrides),
    )


def job_directory(sweep_dir: Path, number: int) -> Path | None:
    """The directory of a job; None if it never began."""
    if (sweep_dir / str(number) / ".hydra").is_dir():
        return sweep_dir / str(number)
    of_job = re.compile(rf"^    num: {number}$", re.MULTILINE)  # hydra.job.num; parsing takes 50 times as long
    for file in sweep_dir.glob("*/.hydra/hydra.yaml"):
        with suppress(OSError):
            if of_job.search(file.read_text(encoding="utf-8")):
                return file.parents[1]
    return None


def has_ended(sweep_dir: Path, number: int) -> bool:
    """Whether a job's own run.json says how it ended."""
    directory = job_directory(sweep_dir, number)
    try:
        return directory is not None and json.loads((directory / "run.json").read_text(encoding="utf-8"))["status"] != "running"
    except (OSError, ValueError, KeyError):
        return False


def ended_from_outside(directory: Path) -> bool:
    """Whether a job was killed or interrupted, so that none of its steps says that it failed."""
    try:
        run = json.loads((directory / "run.json").read_text(encoding="utf-8"))
        return run["status"] != "completed" and all(step["status"] != "failed" for step in run["steps"])
    except (OSError, ValueError, KeyError):
        return False


def mark_failed(sweep_dir: Path, number: int, overrides: Sequence[str], reason: str, *, exit_code: int = 1) -> None:
    """Write into a job's run.json that it failed, since its own process can't any more."""
    directory = job_directory(sweep_dir, number) or sweep_dir / str(number)
    (directory / ".hydra").mkdir(parents=True, exist_ok=True)
    if not (file := directory / ".hydra" / "overrides.yaml").is_file():
        own = [text for text in overrides if not text.startswith("hydra")]
        file.write_text(yaml.safe_dump(own, allow_unicode=True), encoding="utf-8")
    try:
        run = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run = {}
    run |= {"status": "failed", "error": reason, "exit_code": exit_code}
    with atomic_write(directory / "run.json") as partial:
        partial.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def _split_overrides(overrides: Sequence[str]) -> dict[str, str]:
    return dict(without_secret(item).split("=", 1) for item in overrides if "=" in item)


def _costs(job: Job, goal: Goal) -> list[float] | None:
    """A job's values, signed so that lower is better."""
    values = goal.values(job.metrics)
    return None if values is None else [-value if up else value for value, up in zip(values, goal.maximize, strict=True)]


def _rank(job: Job, goal: Goal) -> tuple[bool, float]:
    costs = _costs(job, goal) if job.status == "completed" else None
    return (costs is None, 0.0 if costs is None else costs[0])


def _dominates(one: list[float], other: list[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def _is_measured_on_validation(metric: str) -> bool:
    return any(name.startswith(("eval_", "predict_")) for name in (metric, metric.partition("/")[2]))


def _keys(dicts: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for d in dicts for key in d))


def _metric_text(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

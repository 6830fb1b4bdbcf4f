"""The table of a sweep: what varied, how each job ended, and its metrics.

Read from the jobs' own directories, so that it is the same with every launcher.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its number, its own overrides, how it ended, its metrics, and its error if it has one."""

    number: str
    overrides: dict[str, str]
    status: str
    metrics: dict[str, float]
    error: str | None

    @property
    def name(self) -> str:
        """Its number, or its overrides where it got none."""
        return self.number if self.number != _NONE else " ".join(f"{key}={value}" for key, value in self.overrides.items())


_NONE = "-"


def read_jobs(sweep_dir: Path) -> list[Job]:
    """The jobs of a sweep in the order of their numbers."""
    directories = [d for d in sweep_dir.iterdir() if (d / ".hydra" / "overrides.yaml").is_file()]
    return [_read_job(d) for d in sorted(directories, key=lambda d: (not d.name.isdigit(), int(d.name) if d.name.isdigit() else 0, d.name))]


def refused_job(overrides: Sequence[str], error: str) -> Job:
    """A job that wasn't run, so that it has neither number nor directory."""
    return Job(_NONE, _pairs(overrides), "refused", {}, error)


def table(jobs: list[Job]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the job, each override that differs between jobs, the status, then every metric that any job has."""
    varied = [k for k in _keys(j.overrides for j in jobs) if len({j.overrides.get(k) for j in jobs}) > 1]
    measured = _keys(j.metrics for j in jobs)
    header = ["job", *varied, "status", *measured]
    rows = [[j.number, *(j.overrides.get(k, "") for k in varied), j.status, *(_number(j.metrics.get(k)) for k in measured)] for j in jobs]
    return header, rows


def write_leaderboard(sweep_dir: Path, jobs: list[Job]) -> Path:
    """Write the table as `leaderboard.csv` in the sweep's directory."""
    header, rows = table(jobs)
    path = sweep_dir / "leaderboard.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def printed(jobs: list[Job], most_metrics: int = 6) -> str:
    """The table for a terminal: at most `most_metrics` of the metrics, those that differ and those that people compare first.

    Where a run has several steps of a kind, each one's metrics rather than the last one's under the plain name.
    """
    header, rows = table(jobs)
    first = header.index("status") + 1
    named = {name.partition("/")[2] for name in header}
    told = [i for i in range(first, len(header)) if header[i] not in named and not header[i].endswith("_before")]
    alike = {i: len({row[i] for row in rows}) == 1 for i in told}
    order = sorted(told, key=lambda i: (not _of_held_out(header[i]), alike[i], i))[:most_metrics]
    keep = [*range(first), *sorted(order)]
    lines = [[header[i] for i in keep], *([row[i] for i in keep] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(keep))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _read_job(directory: Path) -> Job:
    overrides = yaml.safe_load((directory / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")) or []
    try:
        run = json.loads((directory / "run.json").read_text(encoding="utf-8"))
        metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run, metrics = {"status": "failed", "error": "it left no run.json"}, {}
    return Job(directory.name, _pairs(overrides), run["status"], metrics, run.get("error"))


def _pairs(overrides: Sequence[str]) -> dict[str, str]:
    return dict(item.split("=", 1) for item in overrides if "=" in item)


def _of_held_out(metric: str) -> bool:
    return any(name.startswith(("eval_", "predict_")) for name in (metric, metric.partition("/")[2]))


def _keys(dicts: object) -> list[str]:
    return list(dict.fromkeys(key for d in dicts for key in d))  # type: ignore[attr-defined]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

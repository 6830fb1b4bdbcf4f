"""`sweep.html`: a sweep on one self-contained page with its table, curves, parallel coordinates and the importance of each parameter.

This module draws everything, so the page is complete without scripts. Scripts add sorting, and highlight a job in all figures. Positions
are percentages of a drawing.

The importance of a parameter is the share of the variance of the jobs' ranks that its values explain: epsilon squared of Kruskal and
Wallis, adjusted for the number of groups like adjusted R². Ranks are used since otherwise a single diverged job dominates the variance.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llmmod.pages.page import Chart, Line, chart, number_text, page, write_page
from llmmod.sweep.results import PRUNED, Goal, Job, best_jobs, command_of, ranked, table, varied_keys

NAME = "sweep.html"
_STATUSES = ("completed", PRUNED, "failed", "interrupted", "missing", "refused")
_MOST_GROUPS = 4  # into which a parameter's many numbers are divided
_MOST_NAMES = 12  # of values on an axis
_LOG_FROM = 30  # ratio of the largest to the smallest value from which an axis is logarithmic


class Axis(NamedTuple):
    """An axis of the parallel coordinates: its number, name and ticks, and each job's position (percent from below) or None."""

    at: int
    name: str
    ticks: list[tuple[float, str]]
    places: dict[str, float | None]


class Importance(NamedTuple):
    """The importance of a parameter, from 0 to 1; None if it needs more jobs."""

    name: str
    share: float | None


@dataclass(frozen=True)
class Row:
    """A job's row on the page: links to its run and its log, and its cells, each with its sort key."""

    job: Job
    link: str | None
    cells: list[tuple[str, str]]
    log: str | None


def write_sweep_page(sweep_dir: Path, jobs: list[Job], goal: Goal, flags: Sequence[str] = ()) -> Path:
    """Write `sweep.html` into a sweep's directory.

    Args:
        sweep_dir: the sweep's directory.
        jobs: all of them.
        goal: the metrics that the sweep optimizes.
        flags: flags of the command line, for the command of the best run.
    """
    write_page(path := sweep_dir / NAME, sweep_page(sweep_dir, jobs, goal, flags))
    return path


def sweep_page(sweep_dir: Path, jobs: list[Job], goal: Goal, flags: Sequence[str] = ()) -> str:
    """The page as HTML; arguments as in `write_sweep_page`."""
    order = ranked(jobs, goal)
    scored = [job.number for job in order if job.status == "completed" and goal.values(job.metrics) is not None]
    tones = {number: place / max(1, len(scored) - 1) for place, number in enumerate(scored)}
    header, cells = _with_goal_first(*table(order), goal)
    rows = [_row(sweep_dir, job, texts) for job, texts in zip(order, cells, strict=True)]
    statuses = Counter(job.status for job in jobs)
    best = best_jobs(jobs, goal)
    charts = [_chart(order, _curve_name(goal)), _chart(order, "loss")]
    return page(
        "llmmod.sweep",
        "page.html",
        title=f"{len(jobs)} job{'' if len(jobs) == 1 else 's'} of {sweep_dir.absolute().name}",
        account=[str(sweep_dir.absolute())],
        choices=[
            *((name, "more is better" if up else "less is better") for name, up in zip(goal.metrics, goal.maximize, strict=True)),
            *((status, str(statuses[status])) for status in _STATUSES if statuses[status]),
        ],
        best=[(job, [(name, number_text(job.metrics[name])) for name in goal.metrics], command_of(job, flags)) for job in best],
        lacking=" and ".join(goal.metrics),
        header=header,
        rows=rows,
        charts=[chart for chart in charts if chart is not None],
        axes=_axes(jobs, goal),
        scored=scored,
        tones=tones,
        importances=importances(jobs, goal),
        metric=goal.metrics[0],
        failures=[row for row in rows if not row.job.ended_well],
    )


def _with_goal_first(header: list[str], rows: list[list[str]], goal: Goal) -> tuple[list[str], list[list[str]]]:
    """A table whose second column is what the sweep looks for, which a phone shows without scrolling."""
    places = [0, *(header.index(name) for name in goal.metrics if name in header)]
    places += [place for place in range(len(header)) if place not in places]
    return [header[place] for place in places], [[row[place] for place in places] for row in rows]


def importances(jobs: list[Job], goal: Goal) -> list[Importance]:
    """The importance of each parameter that varied for the first metric, the most important first."""
    scored = [(job, values[0]) for job in jobs if job.status == "completed" and (values := goal.values(job.metrics)) is not None]
    ranks = _ranks([value for _, value in scored])
    found = []
    for key in varied_keys([job for job, _ in scored]):
        groups = _groups([job.overrides.get(key, "") for job, _ in scored])
        found.append(Importance(key, _explained(ranks, groups)))
    return sorted(found, key=lambda item: -1 if item.share is None else item.share, reverse=True)


def _explained(ranks: list[float], groups: list[str]) -> float | None:
    count, names = len(ranks), list(dict.fromkeys(groups))
    mean = sum(ranks) / max(1, count)
    total = sum((rank - mean) ** 2 for rank in ranks)
    if count <= len(names) or total == 0:
        return None
    within = 0.0
    for name in names:
        own = [rank for rank, group in zip(ranks, groups, strict=True) if group == name]
        within += sum((rank - sum(own) / len(own)) ** 2 for rank in own)
    return max(0.0, 1 - (within / (count - len(names))) / (total / (count - 1)))


def _ranks(values: list[float]) -> list[float]:
    """The rank of each value; equal values share their mean rank."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]


def _groups(texts: list[str]) -> list[str]:
    """The group of each value: the value itself, or for many numbers, the quantile that it is in."""
    numbers = [_number(text) for text in texts]
    different = len(set(texts))
    if different <= _MOST_GROUPS or different * 3 <= len(texts) or any(number is None for number in numbers):
        return texts
    ranks = _ranks([number for number in numbers if number is not None])
    parts = max(2, min(_MOST_GROUPS, len(texts) // 3))
    return [str(int(rank * parts / len(texts))) for rank in ranks]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _row(sweep_dir: Path, job: Job, texts: list[str]) -> Row:
    link = log = None
    if job.directory is not None:
        report = job.directory / "report.html"
        link = (report if report.is_file() else job.directory).relative_to(sweep_dir).as_posix()
        log = f"{job.directory.relative_to(sweep_dir).as_posix()}/run.log" if (job.directory / "run.log").is_file() else None
    cells = [(text, repr(number) if (number := _number(text)) is not None else text) for text in texts]
    return Row(job, link, cells, log)


def _curve_name(goal: Goal) -> str:
    name = goal.metrics[0].rpartition("/")[2]
    return name if name.startswith("eval_") else "eval_loss"


def _chart(jobs: list[Job], name: str) -> Chart | None:
    """The curves of a value in the trainers' logs, or None."""
    lines = [Line(job.number, points) for job in jobs if job.directory is not None and len(points := _curve(job.directory, name)) > 1]
    return chart("training loss" if name == "loss" else name, lines, logarithmic=True)


def _curve(directory: Path, name: str) -> list[tuple[float, float]]:
    """(optimizer step, value) of the last training of a run."""
    states = sorted(directory.glob("*/trainer_state.json"), key=lambda file: file.stat().st_mtime)
    if not states:
        return []
    try:
        logs: list[dict[str, Any]] = json.loads(states[-1].read_text(encoding="utf-8"))["log_history"]
    except (OSError, ValueError, KeyError):
        return []
    points = [(float(log["step"]), float(log[name])) for log in logs if name in log and "step" in log]
    return sorted({x: y for x, y in points if math.isfinite(y)}.items())


def _axes(jobs: list[Job], goal: Goal) -> list[Axis]:
    scored = [job for job in jobs if job.status == "completed" and goal.values(job.metrics) is not None]
    columns = {key: {job.number: job.overrides.get(key) for job in scored} for key in varied_keys(scored)}
    if not columns:
        return []
    columns |= {name: {job.number: repr(float(job.metrics[name])) for job in scored} for name in goal.metrics}
    return [_axis(at, name, texts) for at, (name, texts) in enumerate(columns.items())]


def _axis(at: int, name: str, texts: dict[str, str | None]) -> Axis:
    numbers = {number: _number(text) for number, text in texts.items() if text is not None}
    known = sorted({value for value in numbers.values() if value is not None})
    if known and None not in numbers.values():
        return _number_axis(at, name, {number: numbers.get(number) for number in texts}, known)
    names = list(dict.fromkeys(text for text in texts.values() if text is not None))
    heights = {text: 100 * _share(place, 0, len(names) - 1) for place, text in enumerate(names)}
    places = {number: None if text is None else heights[text] for number, text in texts.items()}
    return Axis(at, name, [(heights[text], text) for text in names[:: math.ceil(len(names) / _MOST_NAMES)]], places)


def _number_axis(at: int, name: str, values: dict[str, float | None], known: list[float]) -> Axis:
    low, high = known[0], known[-1]
    log = low > 0 and high / low >= _LOG_FROM

    def place(value: float) -> float:
        return 100 * (_share(math.log(value), math.log(low), math.log(high)) if log else _share(value, low, high))

    shown = known if len(known) <= _MOST_NAMES / 2 else [low, math.sqrt(low * high) if log else (low + high) / 2, high]
    ticks = [(place(value), f"{value:.3g}") for value in shown]
    return Axis(at, name, ticks, {number: None if value is None else place(value) for number, value in values.items()})


def _share(value: float, low: float, high: float) -> float:
    return 0.5 if high == low else (value - low) / (high - low)

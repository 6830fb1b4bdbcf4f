"""The jobs of a command line, each composed and checked before any runs, and the remaining jobs of an interrupted sweep.

For a grid, every job is checked. For a search, the corners of its space are checked, so that a misspelt key is refused before anything is
imported; each trial is checked when it is suggested.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from llmmod.config.compose import Composed
from llmmod.errors import ConfigError, Problem, one_line
from llmmod.files.lock import holder
from llmmod.files.paths import atomic_write
from llmmod.sweep.results import MANIFEST, Goal, ended_from_outside, read_jobs, read_manifest
from llmmod.sweep.space import corners
from llmmod.upstream import require_upstream

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
OPTUNA = "hydra_plugins.llmmod.OptunaSweeper"  # Hydra accepts sweepers only from packages of this name
EARLIER = "earlier"  # the sweep's directory for failed jobs that run again
RESUMES = "LLMMOD_RESUMES"  # the environment variable of a job that resumes from its own checkpoints
RAY = "hydra_plugins.llmmod.RayLauncher"
Compose = Callable[..., Composed]


@dataclass
class Sweep:
    """A sweep of the command line.

    Args:
        arguments: overrides of the command line.
        jobs: the overrides of each valid job; None: a sweeper other than the basic one chooses them.
        refused: the overrides of each refused job, with its error.
        goal: the metrics that it optimizes.
        compose: composes and checks the overrides of a job, given its number.
        resumed: whether it continues an earlier sweep.
        directory: the directory of its jobs; set when it begins.
    """

    arguments: list[str]
    jobs: list[list[str]] | None
    refused: list[tuple[list[str], ConfigError]]
    goal: Goal
    compose: Compose
    resumed: bool = False
    directory: Path | None = None

    current: ClassVar[Sweep | None] = None  # Hydra creates the sweeper and passes only its configuration


@dataclass(frozen=True)
class Planned:
    """A job to launch.

    Args:
        number: the number of its directory.
        overrides: its own overrides, as typed.
        environment: additional environment variables.
    """

    number: int
    overrides: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def plan_sweep(overrides: Sequence[str], compose: Compose, *, resumed: bool) -> Sweep:
    """The sweep of some overrides. Errors of single jobs are printed on stderr.

    Args:
        overrides: of the command line.
        compose: composes and checks a job's overrides, given `job_num`; raises ConfigError.
        resumed: whether it continues an earlier sweep.

    Raises:
        ConfigError: none of the jobs can be run; with all problems of the first.
    """
    typed = [item.value() for item in parsed(overrides) if item.key_or_group == "hydra/sweeper"]
    grid = not typed or typed[-1] == "basic"
    same_in_all = [item.input_line or "" for item in parsed(overrides) if not item.is_sweep_override()]
    searched = corners(parsed(overrides)) if typed == ["llmmod_optuna"] else [same_in_all]
    jobs = sweep_jobs(overrides) if grid else searched
    composed, good, refused = _compose_all(jobs, compose, search=not grid)
    assert composed.hydra is not None
    sweeper = composed.hydra.sweeper
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    known = {item.key_or_group for item in parsed(overrides)}
    if grid and sweeper["_target_"] == BASIC and (missing := [p for p in params if p.partition("=")[0].lstrip("+") not in known]):
        return plan_sweep([*missing, *overrides], compose, resumed=resumed)
    swept = {item.get_key_element() for item in parsed([*params, *overrides]) if item.is_sweep_override()}
    tasks = [[text for text in job if not _is_hydras(text) or text.partition("=")[0] in swept] for job in good]
    is_grid = grid and sweeper["_target_"] == BASIC
    _tell(refused if is_grid else [], of=len(jobs))
    return Sweep(
        arguments=list(overrides),
        jobs=tasks if is_grid else None,
        refused=[([text for text in job if not _is_hydras(text)], error) for job, error in refused] if is_grid else [],
        goal=Goal.of(composed.config.sweep),
        compose=compose,
        resumed=resumed,
    )


def _compose_all(
    jobs: list[list[str]], compose: Compose, *, search: bool
) -> tuple[Composed, list[list[str]], list[tuple[list[str], ConfigError]]]:
    """The first valid job, composed; the overrides of all valid jobs; those of the refused jobs with their errors."""
    good: list[list[str]] = []
    refused: list[tuple[list[str], ConfigError]] = []
    first = None
    for number, overrides in enumerate(jobs):
        try:
            composed = compose(overrides, job_num=number)
        except ConfigError as problems:
            refused.append((overrides, problems))
            continue
        first = first or composed
        good.append(overrides)
        if search:
            break
    if first is None:
        if len(jobs) > 1:
            print(f"In the job {' '.join(refused[0][0])}:", file=sys.stderr)
        raise refused[0][1]
    return first, good, refused


def _tell(refused: list[tuple[list[str], ConfigError]], *, of: int) -> None:
    for overrides, error in refused:
        print(f"In the job {' '.join(overrides)}:\n{error}", file=sys.stderr)
    if refused:
        print(f"{len(refused)} of {of} jobs can't be run; the others are.", file=sys.stderr)


def parsed(overrides: Sequence[str]) -> list[Override]:
    """The overrides as Hydra parses them.

    Raises:
        ConfigError: if one can't be parsed.
    """
    try:
        found: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(Problem("-m", one_line(error))) from error
    return found


def sweep_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Every job's overrides, in the order in which Hydra's basic sweeper runs them.

    Raises:
        ConfigError: if an override can't be parsed, or has a range that isn't a list of values.
    """
    require_upstream(__name__)
    try:
        return BasicSweeper.split_arguments(parsed(overrides), None)[0]
    except HydraException as error:
        do = "Search it: hydra/sweeper=llmmod_optuna"
        raise ConfigError(Problem("-m", one_line(error), do=do)) from error


def _is_hydras(text: str) -> bool:
    return text.lstrip("+~").startswith(("hydra.", "hydra/"))


def resumed_arguments(overrides: Sequence[str]) -> list[str] | None:
    """The overrides of the sweep that `sweep.resume` names; None without `sweep.resume`.

    Raises:
        ConfigError: if the directory is not a sweep's, or overrides other than Hydra's own would change its jobs.
    """
    texts = [text for text in overrides if text.startswith("sweep.resume=")]
    named = parsed(texts)
    if not named or named[-1].value() is None:
        return None
    directory = Path(str(named[-1].value())).expanduser()
    stored = read_manifest(directory).get("arguments")
    if not isinstance(stored, list):
        found = f"'{directory}' is not a sweep's directory" if directory.is_dir() else f"'{directory}' does not exist"
        raise ConfigError(Problem("sweep.resume", found, do=f"Name one that has {MANIFEST}"))
    typed = [text for text in overrides if not text.startswith("sweep.resume=")]
    if changing := [text for text in typed if not _is_hydras(text)]:
        found = "a resumed sweep keeps its jobs, and this would change them"
        raise ConfigError([Problem(text, found, do="Leave it out, or begin a new sweep") for text in changing])
    keys = {text.partition("=")[0].lstrip("+") for text in typed} | {"hydra.sweep.dir"}
    kept = [text for text in stored if text.partition("=")[0].lstrip("+") not in keys]
    escaped = str(directory).replace("'", "\\'")
    return [*kept, *typed, f"hydra.sweep.dir='{escaped}'"]


def planned_jobs(sweep_dir: Path, jobs: Sequence[list[str]], *, resumed: bool) -> list[Planned]:
    """The jobs with their numbers; for a resumed sweep, the missing and failed jobs, with their old numbers.

    The directory of a failed job is moved to `earlier/`, unless the job resumes in it. A job that still runs is skipped, with a line on
    stderr.
    """
    if not resumed:
        return [Planned(number, job) for number, job in enumerate(jobs)]
    numbers = {_identity(job["overrides"]): int(job["number"]) for job in read_manifest(sweep_dir)["jobs"]}
    later = max(numbers.values(), default=-1) + 1
    left = {_identity(job.arguments): job for job in read_jobs(sweep_dir)}
    planned = []
    for job in jobs:
        before = left.get(_identity(job))
        if before is not None and before.ended_well:
            continue
        directory = None if before is None else before.directory
        if directory is not None and still_runs(directory):
            continue
        number = numbers.get(_identity(job))
        if number is None:  # the job was refused the first time
            number, later = later, later + 1
        planned.append(run_again(Planned(number, job), directory))
    return planned


def still_runs(directory: Path) -> bool:
    """Whether another process uses a job's directory; if so, print that on stderr."""
    problem = holder(directory)
    if problem is not None:
        print(f"{problem.found}, so it is skipped.", file=sys.stderr)
    return problem is not None


def run_again(job: Planned, directory: Path | None) -> Planned:
    """A job to run again.

    A job that was killed or interrupted resumes from its own checkpoints, if it has any. A failed job starts from the beginning, since the
    cause may have been fixed; its old directory is then moved to `earlier/`.

    Args:
        job: the job.
        directory: its old directory, or None.
    """
    if directory is None:
        return job
    if can_resume(directory, job.number):
        return replace(job, environment={**job.environment, RESUMES: "1"})
    set_aside(directory)
    return job


def can_resume(directory: Path, number: int) -> bool:
    """Whether a job can resume in its directory: it has checkpoints, and it is named by the job's number, as Hydra will name it again."""
    return directory.name == str(number) and ended_from_outside(directory) and any(directory.glob("*/checkpoint-*"))


def set_aside(directory: Path) -> None:
    """Move a job's directory to `earlier/` of its sweep, so that the job can run again in a new directory."""
    place = directory.parent / EARLIER
    place.mkdir(exist_ok=True)
    count = 1
    while (target := place / f"{directory.name}-{count}").exists():
        count += 1
    shutil.move(directory, target)


def write_manifest(sweep_dir: Path, sweep: Sweep, jobs: Sequence[Planned], *, dropped: Collection[int] = ()) -> None:
    """Write `sweep.json`. Other jobs that it already has are kept, except those with a number in `dropped`."""
    new = {job.number: [text for text in job.overrides if not _is_hydras(text)] for job in jobs}
    old = {int(job["number"]): job["overrides"] for job in read_manifest(sweep_dir).get("jobs", [])}
    kept = {number: overrides for number, overrides in {**old, **new}.items() if number not in dropped}
    content = {"arguments": sweep.arguments, "jobs": [{"number": n, "overrides": overrides} for n, overrides in sorted(kept.items())]}
    with atomic_write(sweep_dir / MANIFEST) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _identity(overrides: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(text for text in overrides if not _is_hydras(text)))

"""The jobs of one command: which they are, how each ended, and the table of a sweep.

Hydra starts the jobs; `Jobs.run` is the function that it calls for each. An error of one job is kept and shown at the end, so that the
next job starts. The table of a sweep is read from the jobs' own directories, so that it is the same with every launcher.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from llmmod.config.compose import to_root
from llmmod.distributed import rank
from llmmod.errors import EXIT_FAILED, ConfigError, LlmmodError, Problem, one_line
from llmmod.pipeline.run import Outcome, full_error_wanted, run_pipeline
from llmmod.upstream import replaced, require_upstream

_NO_NUMBER = "-"


def sweep_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Every job's overrides, in the order in which Hydra's basic sweeper runs them.

    With another sweeper the values are not known beforehand; then the one job that is returned holds what doesn't vary.

    Raises:
        ConfigError: if an override can't be parsed.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(Problem("-m", one_line(error))) from error
    if any(item.key_or_group == "hydra/sweeper" for item in parsed):
        return [[item.input_line or "" for item in parsed if not item.is_sweep_override()]]
    return BasicSweeper.split_arguments(parsed, None)[0]


@contextmanager
def run_only(jobs: list[list[str]]) -> Iterator[None]:
    """Within it, Hydra's basic sweeper runs these jobs, whatever the overrides stand for.

    Patches `BasicSweeper.split_arguments` (hydra-core 1.3.8).
    """
    require_upstream(__name__)
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    with replaced(BasicSweeper, "split_arguments", staticmethod(lambda overrides, max_batch_size: [jobs])):
        yield


class Jobs:
    """The jobs of one command.

    Args:
        multirun: whether they belong to a sweep.
        refused: overrides of jobs of the sweep that aren't run, and what is wrong with them.
    """

    def __init__(self, *, multirun: bool, refused: Sequence[tuple[Sequence[str], ConfigError]] = ()) -> None:
        self._multirun = multirun
        self._refused = refused
        self._outcomes: list[Outcome] = []
        self._sweep_dir: Path | None = None

    def run(self, config: DictConfig) -> None:
        """Run one job; what goes wrong is kept for `finish`, so that the next job starts.

        Raises:
            KeyboardInterrupt: if the job was interrupted, which ends a sweep.
        """
        hydra = HydraConfig.get()
        run_dir = Path(hydra.runtime.output_dir)
        if self._multirun:
            self._sweep_dir = Path(hydra.sweep.dir).absolute()
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and isinstance(handler.stream, io.TextIOWrapper):
                handler.stream.reconfigure(errors="backslashreplace")  # what a file or a library says needn't be text
        root = to_root(config)
        root.output_dir = str(run_dir)
        outcome = run_pipeline(root, run_dir)
        self._outcomes.append(outcome)
        if outcome.error is not None and self._multirun:
            _print_outcome(outcome)
        if outcome.status == "interrupted":
            raise KeyboardInterrupt

    def finish(self) -> int:
        """Print how it went, and return the exit code."""
        logging.shutdown()
        if rank() != 0:
            return self._exit_code()
        if self._multirun:
            self._finish_sweep()
        elif self._outcomes:
            _print_outcome(self._outcomes[0])
        return self._exit_code()

    def _exit_code(self) -> int:
        codes = [outcome.exit_code for outcome in self._outcomes] or [EXIT_FAILED]
        return max([*codes, *(error.exit_code for _, error in self._refused)])

    def _finish_sweep(self) -> None:
        if self._sweep_dir is None:
            return
        jobs = read_jobs(self._sweep_dir)
        jobs += [refused_job(overrides, str(error)) for overrides, error in self._refused]
        path = write_leaderboard(self._sweep_dir, jobs)
        print(f"\n{printed(jobs)}\n\nThe table: {path}")
        for job in jobs:
            if job.status != "completed":
                print(f"Job {job.name} {job.status}: {job.error}", file=sys.stderr)


def _print_outcome(outcome: Outcome) -> None:
    """The end of a run, as the user reads it: what came out on stdout, what went wrong on stderr."""
    error = outcome.error
    # Behind a conversation, stdout is the answers' alone: it may be a pipe.
    out = sys.stderr if outcome.conversed else sys.stdout
    for line in outcome.summary:
        print(line, file=out)
    if error is None:
        print(f"The run: {outcome.run_dir}", file=out)
        return
    if full_error_wanted():
        traceback.print_exception(error)
    words = "Interrupted" if outcome.status == "interrupted" else str(error) if isinstance(error, LlmmodError) else repr(error)
    print(f"{words}\nWhat was written stays in {outcome.run_dir}", file=sys.stderr)


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
        return self.number if self.number != _NO_NUMBER else " ".join(f"{key}={value}" for key, value in self.overrides.items())


def read_jobs(sweep_dir: Path) -> list[Job]:
    """The jobs of a sweep in the order of their numbers."""
    directories = [d for d in sweep_dir.iterdir() if (d / ".hydra" / "overrides.yaml").is_file()]
    return [_read_job(d) for d in sorted(directories, key=lambda d: (not d.name.isdigit(), int(d.name) if d.name.isdigit() else 0, d.name))]


def refused_job(overrides: Sequence[str], error: str) -> Job:
    """A job that wasn't run, so that it has neither number nor directory."""
    return Job(_NO_NUMBER, _split_overrides(overrides), "refused", {}, error)


def table(jobs: list[Job]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the job, each override that differs between jobs, the status, then every metric that any job has."""
    varied = [k for k in _keys(j.overrides for j in jobs) if len({j.overrides.get(k) for j in jobs}) > 1]
    measured = _keys(j.metrics for j in jobs)
    header = ["job", *varied, "status", *measured]
    rows = [
        [job.number, *(job.overrides.get(k, "") for k in varied), job.status, *(_metric_text(job.metrics.get(k)) for k in measured)]
        for job in jobs
    ]
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
    shown = [i for i in range(first, len(header)) if header[i] not in named and not header[i].endswith("_before")]
    alike = {i: len({row[i] for row in rows}) == 1 for i in shown}
    order = sorted(shown, key=lambda i: (not _is_measured_on_validation(header[i]), alike[i], i))[:most_metrics]
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
    return Job(directory.name, _split_overrides(overrides), run["status"], metrics, run.get("error"))


def _split_overrides(overrides: Sequence[str]) -> dict[str, str]:
    return dict(item.split("=", 1) for item in overrides if "=" in item)


def _is_measured_on_validation(metric: str) -> bool:
    return any(name.startswith(("eval_", "predict_")) for name in (metric, metric.partition("/")[2]))


def _keys(dicts: object) -> list[str]:
    return list(dict.fromkeys(key for d in dicts for key in d))  # type: ignore[attr-defined]


def _metric_text(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

"""The jobs of one command: the function that Hydra calls for each, and the output at the end.

Hydra starts the jobs and calls `Jobs.run` for each, in this process or in another. An error of one job is stored and shown at the end, so
that the next job starts. The results of a sweep are read from the jobs' directories, so that they are the same with every launcher.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from llmmod.config.compose import to_root
from llmmod.config.register import register_schemas
from llmmod.distributed import rank
from llmmod.errors import EXIT_CONFIG, EXIT_FAILED, ConfigError, LlmmodError
from llmmod.instantiate import import_own
from llmmod.pipeline.launch import run_configured
from llmmod.pipeline.record import commands_of, write_json
from llmmod.pipeline.run import Outcome, full_error_wanted
from llmmod.pipeline.session import Left
from llmmod.runs.read import Run
from llmmod.runs.replay import conclude
from llmmod.sweep.plan import RESUMES, Sweep
from llmmod.sweep.results import PRUNED, Goal, Job, best_jobs, command_of, printed, read_jobs, refused_job, write_leaderboard

_stopped_by: list[int] = []  # the exit code of the job that a signal has ended in this process, one of several of a sweep
_LEFT = Left()  # by the sweep's last job in this process


class Jobs:
    """The jobs of one command.

    Args:
        multirun: whether they belong to a sweep.
        sweep: that sweep; None in the processes that run its jobs.
        flags: of the command line; a single job needs them too.
        replayed: the run to repeat, or None.
    """

    def __init__(self, *, multirun: bool, sweep: Sweep | None = None, flags: Sequence[str] = (), replayed: Run | None = None) -> None:
        self._multirun, self._sweep, self._flags, self._replayed = multirun, sweep, flags, replayed
        self._outcomes: list[Outcome] = []
        self._tracebacks = full_error_wanted()  # read now: while Hydra runs, its variable is set

    def __getstate__(self) -> dict[str, Any]:
        """The state that another process needs to run one of a sweep's jobs."""
        return {**vars(Jobs(multirun=self._multirun)), "_tracebacks": self._tracebacks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state in another process, which composes the job's configuration next."""
        register_schemas()
        self.__dict__.update(state)

    def run(self, config: DictConfig) -> float | list[float] | None:
        """Run one job; an error is stored for `finish`, so that the next job starts.

        Returns:
            The value of `sweep.metric`, or a list for several metrics; None if the job failed or doesn't have the metric.

        Raises:
            KeyboardInterrupt: if the job was interrupted, which ends a sweep in this process.
        """
        hydra = HydraConfig.get()
        run_dir = Path(hydra.runtime.output_dir)
        if self._sweep is not None and self._sweep.directory is None:
            self._sweep.directory = Path(hydra.sweep.dir).absolute()  # for a sweeper that isn't ours
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and isinstance(handler.stream, io.TextIOWrapper):
                handler.stream.reconfigure(errors="backslashreplace")  # a message may have bytes that are not text
        if _stopped_by:
            stopped = {"status": "interrupted", "error": "the sweep was stopped before", "exit_code": _stopped_by[0], "steps": []}
            write_json(run_dir / "run.json", stopped)
            return None
        outcome = self._outcome(config, run_dir)
        self._outcomes.append(outcome)
        if outcome.error is not None and self._multirun:
            _print_outcome(outcome, tracebacks=self._tracebacks)
        if outcome.status == "interrupted":
            if self._sweep is None and self._multirun:  # joblib would kill the other jobs while they save
                _stopped_by.append(outcome.exit_code)
                return None
            raise KeyboardInterrupt
        values = Goal.of(config.sweep).values(outcome.metrics) if outcome.status == "completed" else None
        return values[0] if values is not None and len(values) == 1 else values

    def _outcome(self, config: DictConfig, run_dir: Path) -> Outcome:
        try:
            root = to_root(config)
        except ConfigError as error:
            if not self._multirun:
                raise
            write_json(run_dir / "run.json", {"status": "failed", "error": str(error), "exit_code": error.exit_code, "steps": []})
            return Outcome("failed", run_dir, {}, error=error)
        root.output_dir = str(run_dir)
        hydra = HydraConfig.get()
        queued = {"job_id": hydra.job.id} if "SUBMITIT_EXECUTOR" in os.environ else {}
        root.auto_resume |= RESUMES in os.environ or bool(queued and queued.items() <= _read_run(run_dir).items())
        root.replay = None if self._replayed is None else str(self._replayed.directory)
        job_logging: Any = OmegaConf.to_container(hydra.job_logging, resolve=True)
        commands = commands_of(sys.argv, hydra.overrides.task, root, run_dir) | queued
        return run_configured(root, run_dir, job_logging=job_logging, commands=commands, left=_LEFT if self._multirun else None)

    def finish(self) -> int:
        """Print the results, and return the exit code."""
        logging.shutdown()
        codes = [outcome.exit_code for outcome in self._outcomes]
        if self._sweep is not None:
            codes += [error.exit_code for _, error in self._sweep.refused]
            if self._sweep.directory is not None:
                jobs = read_jobs(self._sweep.directory)
                codes += [0 if job.ended_well else job.exit_code or EXIT_FAILED for job in jobs]
                if jobs:
                    self._show_sweep(self._sweep, self._sweep.directory, jobs)
        elif self._outcomes and rank() == 0:
            _print_outcome(self._outcomes[0], tracebacks=self._tracebacks)
        elif self._outcomes and codes[0] not in (0, EXIT_CONFIG):  # the first process prints errors of the configuration
            print(f"rank {rank()}: {self._outcomes[0].error}", file=sys.stderr)
        return max(codes, default=EXIT_FAILED)

    def conclude_replay(self) -> int:
        """Print whether a repeated run has the same bytes; returns 0 if so, or without a repeated run, else 1."""
        if self._replayed is None or rank() != 0 or not self._outcomes:
            return 0
        said, same = conclude(self._replayed, self._outcomes[0].run_dir)
        for line in said:
            print(line)
        return 0 if same else EXIT_FAILED

    def _show_sweep(self, sweep: Sweep, sweep_dir: Path, jobs: list[Job]) -> None:
        jobs = jobs + [refused_job(overrides, str(error)) for overrides, error in sweep.refused]
        path, goal = write_leaderboard(sweep_dir, jobs), sweep.goal
        print(f"\n{printed(jobs, first=goal.metrics)}\n\nThe table: {path}")
        shown = import_own("llmmod.sweep.page.write_sweep_page")(sweep_dir, jobs, goal, self._flags)
        print(f"The page with curves and important options: {shown}")
        best = best_jobs(jobs, goal)
        for job in best:
            values = ", ".join(f"{name}={job.metrics[name]:.6g}" for name in goal.metrics)
            print(f"{'The best' if len(best) == 1 else 'Among the best'}: job {job.name}, {values}\n  {command_of(job, self._flags)}")
        failed = [job for job in jobs if not job.ended_well]
        for job in failed:
            print(f"Job {job.name} {job.status}: {job.error}", file=sys.stderr)
            if job.directory is not None and (job.directory / "run.log").is_file():
                print(f"  Its log: {job.directory / 'run.log'}", file=sys.stderr)
        if any(job.status != "refused" for job in failed):
            again = shlex.join(["llmmod", *self._flags, "-m", f"sweep.resume={sweep_dir}"])
            print(f"To run the missing and failed jobs: {again}", file=sys.stderr)


def _read_run(run_dir: Path) -> dict[str, Any]:
    """The run.json of a job that a queue has begun before and now begins again; empty where it begins for the first time."""
    try:
        run: dict[str, Any] = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return run


def _print_outcome(outcome: Outcome, *, tracebacks: bool) -> None:
    """Print the end of a run: results on stdout, errors on stderr."""
    error = outcome.error
    # After a conversation, stdout has only the answers: it may be a pipe.
    out = sys.stderr if outcome.conversed else sys.stdout
    for line in outcome.summary:
        print(line, file=out)
    if error is None:
        print(f"The run: {outcome.run_dir}", file=out)
        return
    if tracebacks:
        traceback.print_exception(error)
    if outcome.status == PRUNED:
        print(f"{error}\nThe run: {outcome.run_dir}", file=out)
        return
    words = "Interrupted" if outcome.status == "interrupted" else str(error) if isinstance(error, LlmmodError) else repr(error)
    print(f"{words}\nThe written files stay in {outcome.run_dir}", file=sys.stderr)
    if outcome.resume_command is not None:
        print(f"To resume: {outcome.resume_command}", file=sys.stderr)

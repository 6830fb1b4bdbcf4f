"""Run the job or jobs that Hydra starts, and tell at the end what became of them."""

from __future__ import annotations

import io
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from llmmod.errors import EXIT_FAILED, ConfigError, LlmmodError
from llmmod.pipeline import leaderboard
from llmmod.pipeline.run import Outcome, full_error_wanted, run_pipeline
from llmmod.ranks import rank
from llmmod.schema.compose import to_root


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
            _tell(outcome)
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
            _tell(self._outcomes[0])
        return self._exit_code()

    def _exit_code(self) -> int:
        codes = [outcome.exit_code for outcome in self._outcomes] or [EXIT_FAILED]
        return max([*codes, *(error.exit_code for _, error in self._refused)])

    def _finish_sweep(self) -> None:
        if self._sweep_dir is None:
            return
        jobs = leaderboard.read_jobs(self._sweep_dir)
        jobs += [leaderboard.refused_job(overrides, str(error)) for overrides, error in self._refused]
        path = leaderboard.write_leaderboard(self._sweep_dir, jobs)
        print(f"\n{leaderboard.printed(jobs)}\n\nThe table: {path}")
        for job in jobs:
            if job.status != "completed":
                print(f"Job {job.name} {job.status}: {job.error}", file=sys.stderr)


def _tell(outcome: Outcome) -> None:
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

"""Run a configuration in one process or in several, as `distributed.*` sets it.

The parent has composed and validated the configuration. It writes it to one file, and torch's elastic launcher starts the processes. Each
of them reads that file and runs the pipeline (`python -m llmmod.pipeline.launch FILE`), and writes a record of how it ended. The parent
shows the error of the first that failed. Under torchrun and accelerate the processes are running already.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llmmod.config.schema.steps import PlanConf, Root
from llmmod.distributed import cores, is_launched, rank
from llmmod.errors import LlmmodError
from llmmod.files.lock import holding
from llmmod.instantiate import import_own
from llmmod.pipeline.record import close_record, directory_to_go_on_in
from llmmod.pipeline.run import Interrupted, Outcome, run_pipeline
from llmmod.pipeline.session import Left
from llmmod.runs.report import write_report
from llmmod.signals import killed_if_hung

# In errors of a process that only lost its peers (torch 2.13, gloo and NCCL).
_LOST_PEERS = ("closed by peer", "reset by peer", "gloo", "NCCL", "TCPStore", "Broken pipe", "DistBackendError", "DistNetworkError")
log = logging.getLogger("llmmod")


class RankError(LlmmodError):
    """One of several processes failed or was killed."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Frozen:
    """The input of each process.

    Args:
        root: the configuration.
        run_dir: the run's directory.
        job_logging: for `logging.config.dictConfig`; None: Python's defaults.
        commands: for run.json.
    """

    root: Root
    run_dir: Path
    job_logging: Mapping[str, Any] | None
    commands: Mapping[str, str | None]


def run_configured(
    root: Root,
    run_dir: Path,
    *,
    job_logging: Mapping[str, Any] | None = None,
    commands: Mapping[str, str | None] | None = None,
    left: Left | None = None,
) -> Outcome:
    """Run the pipeline in as many processes as `distributed.*` sets; errors are recorded and returned, not raised.

    Args:
        root: the configuration.
        run_dir: the run's directory.
        job_logging: logging of the first process; see `Frozen`.
        commands: the commands that start and resume the run, for run.json, from `pipeline.record.commands_of`.
        left: objects that the last job of a sweep left in this process; see `run_pipeline`.
    """
    commands = commands or {}
    conf = root.distributed
    only_plans = all(isinstance(root.steps.get(name), PlanConf) for name in root.pipeline)  # one process plans for all
    if conf.name == "none" or is_launched() or only_plans:
        return run_pipeline(root, run_dir, commands=commands, left=left)
    starter = "llmmod.trainers.distributed"
    try:
        count = import_own(f"{starter}.processes_of")(conf, use_cpu=getattr(root.training, "use_cpu", False))
    except LlmmodError as error:
        return Outcome("failed", run_dir, {}, error=error)
    if count * conf.nodes == 1 and conf.name == "ddp":
        log.warning("distributed=ddp: one process, since this machine has at most one GPU; set distributed.processes for another number")
        return run_pipeline(root, run_dir, commands=commands)
    with tempfile.TemporaryDirectory(prefix="llmmod-run-") as directory:
        file = Path(directory) / "run.pickle"
        with file.open("wb") as opened:
            pickle.dump(sys.path, opened)
            pickle.dump(Frozen(root, run_dir, job_logging, commands), opened)
        with killed_if_hung(Path(directory)):
            ended = import_own(f"{starter}.run_processes")(["-m", __name__, str(file)], conf=conf, count=count, directory=directory)
        records = {found["rank"]: found for path in Path(directory).glob("rank-*.json") if (found := json.loads(path.read_text()))}
    outcome = _outcome(ended, records, run_dir, processes=count * conf.nodes)
    if outcome.status == "interrupted":
        outcome.resume_command = commands.get("resume_command")
    if outcome.error is not None and conf.rank == 0:
        close_record(run_dir, outcome.status, str(outcome.error), exit_code=outcome.exit_code)
        write_report(run_dir)
    return outcome


def run_config(config: DictConfig) -> dict[str, float]:
    """Validate, run, and return the metrics.

    Raises:
        ConfigError, LlmmodError: as described in `llmmod.run`.
    """
    from llmmod.config.compose import Composed, to_root
    from llmmod.config.validate import validated

    validated(Composed(config=config, hydra=None, overrides=[]))
    root = to_root(config)
    run_dir = Path(root.output_dir).expanduser().resolve()
    if root.auto_resume:
        directory_to_go_on_in(config, given=True)
    writes = rank() == 0 and root.distributed.rank == 0
    with holding(run_dir, command=sys.argv, wait=root.auto_resume) if writes else nullcontext():
        if writes:
            (run_dir / ".hydra").mkdir(parents=True, exist_ok=True)
            OmegaConf.save(config, run_dir / ".hydra" / "config.yaml")
        outcome = run_configured(root, run_dir)
    if outcome.error is not None:
        raise outcome.error
    return outcome.metrics


def _outcome(ended: Any, records: Mapping[int, Mapping[str, Any]], run_dir: Path, *, processes: int) -> Outcome:
    """How a run of several processes ended.

    Args:
        ended: from `trainers.distributed.run_processes`.
        records: rank -> the record of that process.
        run_dir: the run's directory.
        processes: how many there were.
    """
    first = records.get(min(records, default=0), {})
    outcome = Outcome(first.get("status", "failed"), run_dir, first.get("metrics", {}), first.get("summary", []))
    outcome.conversed = first.get("conversed", False)
    if ended.signal is not None:
        outcome.status, outcome.error = "interrupted", Interrupted(ended.signal)
        codes = [found["exit_code"] for found in records.values() if found["status"] == "interrupted"]
        if codes:
            outcome.error.exit_code = codes[0]  # type: ignore[attr-defined]
    elif ended.failures:
        outcome.status, outcome.error = "failed", _first_failure(ended.failures, records, processes=processes)
    return outcome


def _first_failure(failures: Mapping[int, int], records: Mapping[int, Mapping[str, Any]], *, processes: int) -> RankError:
    """The error of the process that failed first; not of one that only lost its peers, or that the launcher ended afterwards.

    Args:
        failures: rank -> exit code, negative for a signal, in the order in which they were found.
        records: as in `_outcome`.
        processes: how many there were.
    """

    def order(number: int) -> tuple[int, float]:
        found = records.get(number)
        if found is None:
            return (3 if failures[number] == -signal.SIGTERM else 1), 0.0
        return (2 if found["lost_peers"] or found["status"] == "interrupted" else 0), found["time"]

    number = min(failures, key=order)
    code, found = failures[number], records.get(number)
    if found is not None and found["error"]:
        said = found["error"]
        alike = len(records) == processes and {record["error"] for record in records.values()} == {said}
        return RankError(said if alike else f"rank {number}: {said}", found["exit_code"])
    if code >= 0:
        return RankError(f"rank {number}: ended with exit code {code}, without a message", code)
    name = signal.Signals(-code).name
    memory = " The system may have run out of memory." if -code == signal.SIGKILL else ""
    return RankError(f"rank {number}: killed by {name}.{memory}", 128 - code)


def work(file: Path) -> int:
    """Run the pipeline in one of several processes, and write its record next to the file; returns the exit code."""
    began = time.time()
    with file.open("rb") as opened:
        sys.path[:] = pickle.load(opened)
        frozen: Frozen = pickle.load(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGUSR2"):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a queue sends it to all processes, and the parent passes it on as SIGTERM
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // int(os.environ["LOCAL_WORLD_SIZE"]))))
    if rank() != 0:
        logging.getLogger().addHandler(logging.NullHandler())  # otherwise Python prints warnings itself
    elif frozen.job_logging is not None:
        logging.config.dictConfig(dict(frozen.job_logging))
    outcome = run_pipeline(frozen.root, frozen.run_dir, commands=frozen.commands)
    error = outcome.error
    cause = None if error is None else f"{type(error.__cause__).__name__}: {error} {error.__cause__}"
    record = {
        "rank": rank(),
        "status": outcome.status,
        "metrics": outcome.metrics,
        "summary": outcome.summary,
        "conversed": outcome.conversed,
        "error": None if error is None else str(error) or type(error).__name__,
        "exit_code": outcome.exit_code,
        "lost_peers": cause is not None and any(words in cause for words in _LOST_PEERS),
        "began": began,
        "time": time.time(),
    }
    (file.parent / f"rank-{rank()}.json").write_text(json.dumps(record, default=str), encoding="utf-8")
    if error is None:
        import_own("llmmod.trainers.distributed.leave_group")()
    return outcome.exit_code


if __name__ == "__main__":
    # By the module's importable name, so that unpickled objects have the same classes.
    from llmmod.pipeline import launch

    sys.exit(launch.work(Path(sys.argv[1])))

"""Run a pipeline: its steps in order, in one process, sharing loaded objects.

run.json always records how a run ended: completed, failed or interrupted. The files of its steps stay. Warnings and progress bars of the
libraries are not shown on the terminal, where they would hide important lines.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from llmmod.config.schema.steps import Root
from llmmod.config.step_parts import StepConfigs
from llmmod.distributed import limit_threads, rank
from llmmod.errors import EXIT_FAILED, ConfigError, LlmmodError, Problem, Pruned, RunError, one_line
from llmmod.files.lock import DirectoryInUseError, holding
from llmmod.instantiate import import_own, locate
from llmmod.pipeline.record import Record, completed_metrics, set_resume
from llmmod.pipeline.session import Left, Session, compatibility_warnings
from llmmod.runs.report import write_report
from llmmod.signals import queue_again

_LIBRARIES = r"(transformers|trl|peft|datasets|accelerate|huggingface_hub|torch)\b"

# bitsandbytes 0.50 advises every run on a CPU, quantized or not, to install a package of kernels.
_KERNELS = "bitsandbytes.backends.cpu.ops"
log = logging.getLogger("llmmod")


def quiet_libraries() -> None:
    """Silence the libraries; call it before they are imported. The user's environment variables take precedence."""
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=_LIBRARIES)
    if not sys.stderr.isatty():
        for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):  # a worker of Ray has imported tqdm already
            os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # in each process, torch's DDP advises to turn off find_unused_parameters
    logging.getLogger(_KERNELS).setLevel(logging.ERROR)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # FSDP logs each written file


class Interrupted(BaseException):
    """SIGTERM or SIGUSR1. It is not an Exception, so that `except Exception` doesn't catch it.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@dataclass
class Outcome:
    """How a run ended.

    Args:
        status: `completed`, `failed`, `interrupted`, or `pruned` by a search.
        metrics: as in metrics.json.
        summary: lines of the steps, printed at the end.
        conversed: whether a step wrote answers to stdout.
        error: the error that ended the run, or None.
        resume_command: resumes a run that a signal ended.
    """

    status: str
    run_dir: Path
    metrics: dict[str, float]
    summary: list[str] = field(default_factory=list)
    conversed: bool = False
    error: BaseException | None = None
    resume_command: str | None = None

    @property
    def exit_code(self) -> int:
        """0 done; 1 failed while running; 2 configuration, data or path wrong; 128 plus the number of the signal that ended the run."""
        if self.error is None:
            return 0
        if isinstance(self.error, KeyboardInterrupt):
            return 128 + signal.SIGINT
        return getattr(self.error, "exit_code", EXIT_FAILED)


def run_pipeline(root: Root, run_dir: Path, *, commands: Mapping[str, str | None] | None = None, left: Left | None = None) -> Outcome:
    """Run every step of `root.pipeline`; errors are recorded and returned, not raised.

    Args:
        root: the validated configuration.
        run_dir: the run's directory.
        commands: the commands that start and resume the run, for run.json, from `pipeline.record.commands_of`.
        left: objects that jobs of a sweep share in this process; None: nothing is shared.
    """
    quiet_libraries()
    limit_threads()
    try:
        with holding(run_dir, command=sys.argv, wait=root.auto_resume) if rank() == 0 else nullcontext():
            return _run_alone(root, run_dir, commands or {}, left)
    except DirectoryInUseError as error:
        return Outcome("failed", run_dir, {}, error=error)


def _run_alone(root: Root, run_dir: Path, commands: Mapping[str, str | None], left: Left | None) -> Outcome:
    """Run the pipeline in a directory that this process has locked."""
    if root.auto_resume:
        if (metrics := completed_metrics(run_dir)) is not None:
            return Outcome("completed", run_dir, metrics, summary=["This run was completed before; nothing is left to do."])
        set_resume(root)
    several = _several_of_a_kind(root)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        record = Record(run_dir, seed=root.seed, pipeline=root.pipeline, several=several, commands=commands, enabled=rank() == 0)
    except OSError as error:
        return Outcome("failed", run_dir, {}, error=_as_llmmod_error(error, "output_dir"))
    outcome = Outcome("completed", run_dir, record.metrics)
    try:
        with _signals_as_interrupts(), import_own("llmmod.models.matmul.onednn_products")() if _computes(root) else nullcontext():
            session = Session(root, run_dir, left)
            _run_steps(root, session, record, outcome)
            session.leave()
    except (Interrupted, KeyboardInterrupt) as error:
        outcome.status, outcome.error, outcome.resume_command = "interrupted", error, commands.get("resume_command")
    except Pruned as error:
        outcome.status, outcome.error = "pruned", error
        record.metrics.update(error.metrics)
    except Exception as error:
        _log_traceback(run_dir)
        outcome.status, outcome.error = "failed", _as_llmmod_error(error, record.running or "run")
    with suppress(OSError):
        said = None if outcome.error is None else str(outcome.error) or type(outcome.error).__name__
        record.close(outcome.status, said, exit_code=outcome.exit_code)
    if rank() == 0:
        write_report(run_dir)
    return outcome


def _computes(root: Root) -> bool:
    """Whether a step needs a model; otherwise the run doesn't import torch."""
    return any(getattr(type(root.steps.get(name)), "needs_model", True) for name in root.pipeline)


def _several_of_a_kind(root: Root) -> list[str]:
    """The steps that share their kind, and so their metrics' names, with another step of the pipeline."""
    kinds = {name: type(root.steps.get(name)) for name in root.pipeline}
    return [name for name, kind in kinds.items() if list(kinds.values()).count(kind) > 1]


def _run_steps(root: Root, session: Session, record: Record, outcome: Outcome) -> None:
    record.data(session.data)
    for line in compatibility_warnings(StepConfigs(root)):
        log.warning(line)
    for number, name in enumerate(root.pipeline, start=1):
        log.info("[%d/%d] %s", number, len(root.pipeline), name)
        with record.step(name) as report:
            step = locate(root.steps[name]._target_)(root.steps[name], name)
            done = step.run(session)
            report.metrics, report.artifacts, report.summary = done.metrics, done.artifacts, done.summary
            report.conversed, report.reused_from = done.conversed, done.reused_from
        outcome.summary += report.summary
        outcome.conversed |= report.conversed


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is a full disk.

    Errors of Rust libraries (safetensors, tokenizers) say it only in their text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in (f"os error {errno.ENOSPC}", "No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _log_traceback(run_dir: Path) -> None:
    """Append the traceback to run.log, not to the terminal."""
    with suppress(OSError), (run_dir / "run.log").open("a", encoding="utf-8") as file:
        file.write(traceback.format_exc())


def _as_llmmod_error(error: Exception, where: str) -> Exception:
    """The error itself if it is one of ours, else one of ours with a line about it and where to read more."""
    if isinstance(error, LlmmodError):
        return error
    if _is_full_disk(error):
        do = (
            "Free some space, then resume from the last checkpoint, which is intact, with training.resume_from_checkpoint=true. "
            "training.save_total_limit=1 keeps fewer checkpoints"
        )
        explained: LlmmodError = RunError(str(Problem(where, f"the disk is full: {one_line(error, 600)}", do=do)))
    elif isinstance(error, OSError) and error.errno == errno.EFBIG:
        do = "Raise the limit of a file's size (ulimit -f), or choose another directory. The last checkpoint is intact"
        explained = RunError(str(Problem(where, f"a file became too large: {one_line(error, 600)}", do=do)))
    elif isinstance(error, PermissionError) and where == "output_dir":
        explained = ConfigError(Problem(where, f"{error.filename} can't be written: {error.strerror}", do="Choose another directory"))
    else:
        found = f"{type(error).__name__}: {one_line(error, 600)}" if str(error) else type(error).__name__
        explained = RunError(str(Problem(where, found, do="HYDRA_FULL_ERROR=1 shows the traceback; run.log has it")))
    explained.__cause__ = error
    return explained


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """A context in which SIGTERM and SIGUSR1 end the run like Ctrl-C. Only the main thread may set handlers; in others nothing changes.

    So does SIGUSR2 in a job of submitit, unless submitit queues the job again.
    """
    before: dict[int, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    def ask_queue(number: int, frame: FrameType | None) -> None:
        queue_again(before[number], number)
        raise Interrupted(number)

    handlers = {getattr(signal, name): stop for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)}
    if hasattr(signal, "SIGUSR2") and callable(signal.getsignal(signal.SIGUSR2)):
        handlers[signal.SIGUSR2] = ask_queue
    try:
        for number, handler in handlers.items():
            before[number] = signal.signal(number, handler)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def full_error_wanted() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")

"""The record of a run: run.json and metrics.json, written during the run.

Both files are replaced atomically, so that they are complete even if the run is killed. Only rank 0 writes. A run must still be able to
record that the disk is full: a reserve file is kept for that, and removed before the last write.

An interrupted run is resumed by the command that its record has, or by `auto_resume=true`, with which the same command starts or continues
a run: for machines that start a job again, such as a queue that preempts. With `output_dir`, it continues the run in that directory,
otherwise the newest unfinished run of the same configuration. A completed run stays unchanged.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from llmmod.config.schema.steps import Root
from llmmod.config.step_parts import StepConfigs
from llmmod.errors import ConfigError, Problem, Pruned
from llmmod.files.paths import atomic_write, sweep_partial
from llmmod.protocols import StepReport
from llmmod.runs.read import flat, surroundings

_RESERVE = ".reserve"
_RESERVE_BYTES = 2**16
_KEY = "resume_from_checkpoint"
_OUTPUT, _AUTO = "output_dir", "auto_resume"
_FLAGS = ("--config-dir", "--config-name", "--config-path", "-cd", "-cn", "-cp")
_PLAIN = re.compile(r"[\w/.:@-]+")
_NAMED = 3  # at most so many differing keys in a message


class Record:
    """The record of one run, on disk from its start.

    Args:
        directory: the run's directory.
        seed: the run's seed.
        pipeline: step names in order; each is listed as `pending` until it starts.
        several: steps that share their kind with another step: their metrics are also written with their names, `sft/train_loss`.
        commands: `command` starts the run, `resume_command` resumes it, and `cwd` is the working directory of both.
        enabled: False on ranks other than 0, which don't write.
    """

    def __init__(
        self,
        directory: Path,
        *,
        seed: int,
        pipeline: list[str],
        several: Collection[str] = (),
        commands: Mapping[str, str | None] | None = None,
        enabled: bool = True,
    ) -> None:
        self._directory = directory
        self._enabled, self._several = enabled, frozenset(several)
        self._began = time.time()
        self.metrics: dict[str, float] = {}
        self._steps: dict[str, dict[str, Any]] = {name: {"name": name, "status": "pending"} for name in pipeline}
        self._run: dict[str, Any] = {
            "status": "running",
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": 0.0,
            **surroundings(),
            "seed": seed,
            "error": None,
            "data": [],
            **(commands or {}),
        }
        if enabled:
            for place in (directory, *(directory / name for name in pipeline)):
                sweep_partial(place)
        self._write()
        if enabled:
            (directory / _RESERVE).write_bytes(os.urandom(_RESERVE_BYTES))  # random, since some file systems don't store zeros

    @contextmanager
    def step(self, name: str) -> Iterator[StepReport]:
        """A context that times a step and records how it ends; yields the report to fill."""
        entry, report, began, worked = self._steps[name], StepReport(), time.perf_counter(), time.process_time()
        entry["status"] = "running"
        _reset_peak_rss()
        self._write()
        try:
            yield report
            entry["status"] = "completed"
        except BaseException as error:
            ended = "failed" if isinstance(error, Exception) else "interrupted"
            entry["status"] = "pruned" if isinstance(error, Pruned) else ended
            raise
        finally:
            entry["seconds"], entry["cpu_seconds"] = round(time.perf_counter() - began, 3), round(time.process_time() - worked, 3)
            entry["peak_rss_bytes"] = peak_rss_bytes()
            entry["artifacts"], entry["metrics"] = report.artifacts, report.metrics
            if report.reused_from is not None:
                entry["reused_from"] = report.reused_from
            self.metrics.update(report.metrics)
            if name in self._several:
                self.metrics.update({f"{name}/{metric}": value for metric, value in report.metrics.items()})
            # A full disk must not hide the original error.
            with suppress(OSError):
                self._write()

    def data(self, accounts: list[dict[str, Any]]) -> None:
        """Set the accounts of the datasets that the steps read; the list may grow. It is written when a step ends."""
        self._run["data"] = accounts

    @property
    def running(self) -> str | None:
        """The step that started last; None before the first."""
        begun = [name for name, entry in self._steps.items() if entry["status"] != "pending"]
        return begun[-1] if begun else None

    def close(self, status: str, error: str | None = None, *, exit_code: int = 0) -> None:
        """Write how the run ended: `completed`, `failed`, `interrupted`, or `pruned` by a search."""
        self._run["status"], self._run["error"], self._run["exit_code"] = status, error, exit_code
        if self._enabled:
            (self._directory / _RESERVE).unlink(missing_ok=True)
        self._write()

    def _write(self) -> None:
        if not self._enabled:
            return
        self._run["seconds"] = round(time.time() - self._began, 3)
        write_json(self._directory / "run.json", {**self._run, "steps": list(self._steps.values())})
        write_json(self._directory / "metrics.json", self.metrics)


def close_record(directory: Path, status: str, error: str, *, exit_code: int) -> None:
    """Write how a run ended into its run.json, if the recording process couldn't, or knew less. It may have died before it wrote one."""
    with suppress(OSError, ValueError):
        path = directory / "run.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps": []}
        found |= {"status": status, "error": error, "exit_code": exit_code}
        for step in found["steps"]:
            if step["status"] in ("running", "interrupted"):  # by the launcher, after another process failed
                step["status"] = status
        (directory / _RESERVE).unlink(missing_ok=True)
        write_json(directory / "run.json", found)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` by `content` as JSON in one step."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def peak_rss_bytes() -> int:
    """The peak memory of this process in bytes, since the last reset if the kernel supports it, else since its start."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reset_peak_rss() -> None:
    # 5 resets VmHWM (Linux, proc(5)); elsewhere the peak is that of the whole process.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def commands_of(argv: Sequence[str], overrides: Sequence[str], root: Root, run_dir: Path) -> dict[str, str | None]:
    """The commands of a run for run.json, to be typed in the working directory `cwd`.

    Args:
        argv: of the process, for the flags about the configuration's place.
        overrides: of the run.
        root: its configuration.
        run_dir: its directory.

    Returns:
        `command`, which starts it; `resume_command`, which resumes it, None without a training step; `cwd`.
    """
    start, parts = _program(argv), StepConfigs(root)
    keys = list(dict.fromkeys(f"{parts.part(step, 'training')}.{_KEY}" for step in parts.steps if parts.trains(step)))
    kept = [text for text in overrides if text.lstrip("+~").partition("=")[0] not in (_OUTPUT, _AUTO, *keys)]
    resumed = [*start, *kept, directory_override(run_dir), *(f"{key}=true" for key in keys)]
    return {"command": shlex.join([*start, *overrides]), "resume_command": shlex.join(resumed) if keys else None, "cwd": os.getcwd()}


def directory_override(run_dir: Path) -> str:
    """`output_dir=…`, quoted if Hydra's grammar requires it."""
    return f"{_OUTPUT}={run_dir}" if _PLAIN.fullmatch(str(run_dir)) else f"{_OUTPUT}='{run_dir}'"


def _program(argv: Sequence[str]) -> list[str]:
    """The start of a command: llmmod, with the flags about the configuration's place and the allowed modules."""
    start = ["python", "-m", "llmmod"] if Path(argv[0]).name == "__main__.py" else ["llmmod"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        start = ["torchrun", f"--nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', '1')}", "-m", "llmmod"]
    allowed = [f"--allow={module}" for module in os.environ.get("LLMMOD_ALLOW", "").split(",") if module]
    flags = [text for at, text in enumerate(argv[1:], 1) if text.startswith(_FLAGS) or (argv[at - 1] in _FLAGS and "=" not in argv[at - 1])]
    return [*start, *flags, *allowed]


def set_resume(root: Root) -> None:
    """Set every training step of a run to resume from its newest checkpoint, unless it names one."""
    parts = StepConfigs(root)
    for step in parts.steps:
        if parts.trains(step) and getattr(training := parts.of(step, "training"), _KEY, None) is None:
            setattr(training, _KEY, True)


def completed_metrics(run_dir: Path) -> dict[str, float] | None:
    """The metrics of a completed run; None if it isn't completed."""
    with suppress(OSError, ValueError):
        if json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["status"] == "completed":
            return dict(json.loads((run_dir / "metrics.json").read_text(encoding="utf-8")))
    return None


def directory_to_go_on_in(config: DictConfig, *, given: bool) -> Path | None:
    """The directory of the run that `auto_resume` continues; None if a new run starts, in `output_dir`.

    Args:
        config: composed.
        given: whether the user set `output_dir`; otherwise its name is the time.

    Raises:
        ConfigError: the user's directory contains a run of another configuration.
    """
    output = Path(str(config[_OUTPUT])).expanduser()
    if given:
        if differing := list(_differences(output, config)):
            more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
            found = f"'{output}' contains a run of another configuration: {', '.join(differing[:_NAMED])}{more}"
            do = "Choose another directory, or continue it anyway: training.resume_from_checkpoint=true without auto_resume"
            raise ConfigError(Problem(_OUTPUT, found, "auto_resume=true continues a run of the same configuration", do))
        return output
    there = [path for path in output.parent.glob("*") if path != output and (path / ".hydra" / "config.yaml").is_file()]
    for path in sorted(there, key=lambda path: path.name, reverse=True):
        if not any(_differences(path, config)):
            return None if completed_metrics(path) is not None else path
    return None


def _differences(run_dir: Path, config: DictConfig) -> Iterator[str]:
    """The differences between a run's configuration and this one, `seed was 1, is 2`; empty without a run."""
    try:
        before = flat(yaml.safe_load((run_dir / ".hydra" / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError):
        return
    now = flat(yaml.safe_load(OmegaConf.to_yaml(config)))
    for key in {**before, **now}:
        if key not in (_OUTPUT, _AUTO) and not key.endswith(_KEY) and before.get(key) != now.get(key):
            yield f"{key} was {before.get(key)}, is {now.get(key)}"

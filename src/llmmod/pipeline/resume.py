"""Resuming a run: the command for it, and `auto_resume=true`, with which the same command starts or continues a run.

`auto_resume` is for machines that start a job again: a queue that preempts, a node that fails. With `output_dir`, it continues the run in
that directory, otherwise the newest unfinished run of the same configuration. A completed run stays unchanged.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from llmmod.config.schema.steps import Root
from llmmod.config.step_parts import StepConfigs
from llmmod.errors import ConfigError, Problem
from llmmod.runs.read import flat

_KEY = "resume_from_checkpoint"
_OUTPUT, _AUTO = "output_dir", "auto_resume"
_FLAGS = ("--config-dir", "--config-name", "--config-path", "-cd", "-cn", "-cp")
_PLAIN = re.compile(r"[\w/.:@-]+")
_NAMED = 3  # at most so many differing keys in a message


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

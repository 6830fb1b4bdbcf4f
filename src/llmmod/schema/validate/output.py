"""The run's directory: one that can be made and written to, and that holds no other run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmmod.errors import Problem
from llmmod.ranks import rank
from llmmod.schema.validate.context import Context

KEY = "output_dir"
_OTHER = "Choose another directory"
_LEAST_FREE_BYTES = 2**20  # a run's own account and log; how much its weights take, nobody knows yet


def check_output(context: Context) -> Iterator[Problem]:
    """A problem if the run couldn't be written. In a sweep Hydra gives each job a directory of its own.

    Of several processes the first alone writes, and alone looks: what the others found there might be the first one's.
    """
    wanted = context.get(KEY)
    if not isinstance(wanted, str) or context.in_sweep or rank() != 0:
        return
    try:
        yield from _problems(context, wanted, Path(wanted).expanduser())
    except OSError as error:
        yield Problem(KEY, f"'{wanted}' can't be reached: {error.strerror}", do=_OTHER)


def _problems(context: Context, wanted: str, directory: Path) -> Iterator[Problem]:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        what = "is a file" if existing == directory else f"can't be made: {existing} is a file"
        yield Problem(KEY, f"'{wanted}' {what}", do=_OTHER)
    elif not os.access(existing, os.W_OK | os.X_OK) or os.statvfs(existing).f_flag & os.ST_RDONLY:
        yield Problem(KEY, f"'{wanted}' can't be written: no right to write to {existing}", do=_OTHER)
    elif _is_full(existing):
        yield Problem(KEY, f"'{wanted}' can't be written: the disk is full", do=f"Free some space, or {_OTHER[0].lower()}{_OTHER[1:]}")
    elif (directory / "run.json").exists() and not _resumes(context):
        do = f"{_OTHER}, or go on with that run: training.resume_from_checkpoint=true"
        yield Problem(KEY, f"'{wanted}' holds another run", do=do)


def _is_full(directory: Path) -> bool:
    usage = shutil.disk_usage(directory)
    return usage.total > 0 and usage.free < _LEAST_FREE_BYTES  # what has no size, such as /proc, isn't full


def _resumes(context: Context) -> bool:
    trains = [step for step in context.steps if context.trains(step)]
    wanted = [context.get(f"{context.part(step, 'training')}.resume_from_checkpoint") for step in trains]
    return any(value not in (None, False) for value in wanted)

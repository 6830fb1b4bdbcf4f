"""Launching jobs with any of Hydra's launchers, each in its own directory. If one job's process dies, the others still run.

A job whose run fails records that in its run.json, and the next one starts. This module handles jobs whose process dies: joblib then gives
up all of its jobs, and submitit stops waiting for the others. The jobs that did not cause it are launched again; the one that did is marked
as failed, with the reason.

Jobs that run in parallel on one machine share its cores: each gets as many threads as its share of the cores.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from llmmod.distributed import cores
from llmmod.errors import one_line
from llmmod.files.lock import holding
from llmmod.instantiate import import_own
from llmmod.signals import signals_to_jobs
from llmmod.sweep.plan import BASIC, OPTUNA, RAY, Planned, Sweep, planned_jobs, run_again, write_manifest
from llmmod.sweep.results import has_ended, job_directory, mark_failed
from llmmod.upstream import replaced, require_upstream

log = logging.getLogger("llmmod")
_NUMBER = "${hydra.job.num}"
_THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")  # torch's, and those of tokenizers
_SILENT = "its process ended without an error message; was it killed, or out of memory?"


def launch(launcher: Launcher, config: DictConfig, jobs: Sequence[Planned], *, at_once: int | None = None) -> None:
    """Run all jobs, even if some of them die; run.json of each says how it ended.

    Args:
        launcher: Hydra's launcher, set up.
        config: the sweep's configuration, with Hydra's node.
        jobs: in the order in which they begin.
        at_once: how many jobs are given to the launcher together; None: as many as it takes.
    """
    sweep_dir = Path(str(config.hydra.sweep.dir)).absolute()
    wave = at_once or _most_at_once(config) or len(jobs) or 1
    with signals_to_jobs(apart=_in_processes(config)) as received:
        for begin in range(0, len(jobs), wave):
            _launch_wave(launcher, config, list(jobs[begin : begin + wave]), sweep_dir, received)
            if received:
                raise KeyboardInterrupt


def _in_processes(config: DictConfig) -> bool:
    """Whether a launcher runs jobs in other processes of this machine."""
    node = config.hydra.launcher
    target = str(node.get("_target_", ""))
    return target.endswith("LocalLauncher") or (target.endswith("JoblibLauncher") and node.get("n_jobs") != 1)


def side_by_side(config: DictConfig, jobs: int) -> int:
    """How many of the given number of jobs a launcher runs in parallel on this machine."""
    node, here = config.hydra.launcher, cores()
    target = str(node.get("_target_", ""))
    if target.endswith("JoblibLauncher"):
        wanted = int(node.get("n_jobs") or 1)
        return min(jobs, wanted if wanted > 0 else max(1, here + 1 + wanted))
    if target.endswith("LocalLauncher"):
        return min(jobs, here)
    return 1  # one after the other, or on other machines, where Slurm and Ray divide the cores


def threads_of_each(jobs: int) -> int:
    """Threads for each of several parallel jobs; fewer if the user's OMP_NUM_THREADS is lower."""
    share = max(1, cores() // jobs)
    wanted = os.environ.get(_THREADS[0], "")
    return min(share, int(wanted)) if wanted.isdigit() and int(wanted) else share


def _most_at_once(config: DictConfig) -> int | None:
    """How many jobs are launched together. submitit starts a process for every local job at once."""
    wanted: int | None = config.hydra.sweeper.get("max_batch_size")
    if wanted is None and str(config.hydra.launcher.get("_target_", "")).endswith("LocalLauncher"):
        return cores()
    return wanted


def _launch_wave(launcher: Launcher, config: DictConfig, wave: list[Planned], sweep_dir: Path, received: Sequence[int]) -> None:
    """Launch jobs together. If a process dies, launch the jobs that did not cause it again, unless a signal was received."""
    groups = [wave]
    while groups:
        group = groups.pop(0)
        extra = _extra_overrides(config, group)
        reasons: dict[int, str] = {}
        died = None
        with _waiting_for_all():
            try:
                results = launcher.launch([[*job.overrides, *own] for job, own in zip(group, extra, strict=True)], group[0].number)
                for job, result in zip(group, results, strict=True):
                    if result is not None and result.status == JobStatus.FAILED:
                        reasons[job.number] = _raised(result)
            except Exception as error:
                died = one_line(error, 600)
        open_jobs = [job for job in group if not has_ended(sweep_dir, job.number)]
        began = [job for job in open_jobs if job_directory(sweep_dir, job.number) is not None]
        if received:
            return
        if died is not None and len(group) > 1 and began:
            groups += [[run_again(job, job_directory(sweep_dir, job.number))] for job in began]
            groups += [waiting] if (waiting := [job for job in open_jobs if job not in began]) else []
        else:
            for job in open_jobs:
                mark_failed(sweep_dir, job.number, job.overrides, reasons.get(job.number) or died or _SILENT)


def _raised(result: JobReturn) -> str:
    """The error that a job raised."""
    try:
        _ = result.return_value
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error, 600)}"
    return ""


def _extra_overrides(config: DictConfig, group: Sequence[Planned]) -> list[list[str]]:
    """Overrides for each job of a group besides its own, so that every process writes to the intended directory."""
    subdir = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"])  # type: ignore[index,call-overload]
    common = [_assigned("hydra.sweep.dir", str(Path(str(config.hydra.sweep.dir)).absolute()))]
    together = side_by_side(config, len(group))
    if together > 1:
        common += [f"++hydra.job.env_set.{name}={_quoted(str(threads_of_each(together)))}" for name in _THREADS]
    extra = []
    for place, job in enumerate(group):
        own = [f"++hydra.job.env_set.{name}={_quoted(value)}" for name, value in job.environment.items()]
        if job.number != group[0].number + place:  # a launcher counts up from the first number
            own.append(_assigned("hydra.sweep.subdir", subdir.replace(_NUMBER, str(job.number))))
        extra.append([*common, *own])
    return extra


def _assigned(key: str, text: str) -> str:
    return f"{key}={_quoted(text)}"


def _quoted(text: str) -> str:
    """A text as Hydra's grammar quotes it: a backslash escapes only before a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


@contextmanager
def _waiting_for_all() -> Iterator[None]:
    """A context in which submitit waits for every job and returns None for one whose process died."""
    try:
        from submitit.core.core import Job
    except ImportError:
        yield
        return
    require_upstream(__name__)
    results = Job.results

    def results_or_none(job: Any) -> list[Any]:
        try:
            found: list[Any] = results(job)
        except Exception:
            return [None]
        return found

    with replaced(Job, "results", results_or_none):
        yield


class LaunchingSweeper(Sweeper):
    """Base of our sweepers: it has the launcher, and the sweep of the command line, `Sweep.current`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra passes to a sweeper, and create the launcher."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)


class GridSweeper(LaunchingSweeper):
    """Hydra's `basic` sweeper: the product of all values. The jobs have been checked, and `params` are part of them."""

    def __init__(self, max_batch_size: int | None = None, params: Any = None) -> None:
        super().__init__()

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs; each one's directory says how it ended."""
        assert self.config is not None
        assert self.launcher is not None
        with begin(self.config) as (sweep, sweep_dir):
            jobs = planned_jobs(sweep_dir, sweep.jobs or [], resumed=sweep.resumed)
            write_manifest(sweep_dir, sweep, jobs)
            launch(self.launcher, self.config, jobs)


@contextmanager
def begin(config: DictConfig) -> Iterator[tuple[Sweep, Path]]:
    """The sweep of the command line, and its directory, created and locked, with Hydra's own record of the overrides.

    Raises:
        ConfigError: another process uses the directory.
    """
    sweep = Sweep.current
    assert sweep is not None
    directory = Path(str(config.hydra.sweep.dir))
    with holding(directory, command=sys.argv):
        sweep.directory = directory
        OmegaConf.save(config, directory / "multirun.yaml")
        yield sweep, directory


class RayLauncher(Launcher):
    """`hydra/launcher=llmmod_ray`: each job is a task of Ray, on this machine or on a cluster.

    Hydra's own plug-in for Ray (1.2.2) can't be used: it requires cloudpickle below 3.

    Args:
        init: arguments of `ray.init`.
        remote: arguments of `ray.remote`: the resources of each job.
    """

    def __init__(self, init: Mapping[str, Any] | None = None, remote: Mapping[str, Any] | None = None) -> None:
        self._init, self._remote = dict(init or {}), dict(remote or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra passes to a launcher."""
        self._context, self._task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run the jobs. Returns the result of each, None for one whose process died."""
        import ray

        if not ray.is_initialized():
            ray.init(**{"include_dashboard": False, **self._init})
        run = ray.remote(**{"max_retries": 0, **self._remote})(_run_job)
        shared = ray.put((self._context, self.config, self._task, Singleton.get_state(), os.getcwd()))
        jobs = [run.remote(shared, list(overrides), initial_job_idx + place) for place, overrides in enumerate(job_overrides)]
        results = []
        for job in jobs:
            try:
                results.append(ray.get(job))
            except ray.exceptions.RayError as error:
                log.warning("%s", one_line(error))
                results.append(None)
        return results


def _run_job(shared: tuple[HydraContext, DictConfig, TaskFunction, Any, str], overrides: list[str], number: int) -> JobReturn:
    """Run a job of a sweep in a worker process."""
    context, config, task, state, directory = shared
    with suppress(OSError):  # another machine may not have it
        os.chdir(directory)
    setup_globals()
    Singleton.set_state(state)
    job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.id, job.hydra.job.num = str(number), number
    return run_job(task, job, "hydra.sweep.dir", "hydra.sweep.subdir", context)


@contextmanager
def sweepers(sweep: Sweep) -> Iterator[None]:
    """A context in which Hydra creates our sweepers, which run this sweep."""
    known: dict[str, Any] = Plugins.instance().class_name_to_class
    before = dict(known)
    known[BASIC], known[RAY] = GridSweeper, RayLauncher
    if sweep.jobs is None:
        known[OPTUNA] = import_own("llmmod.sweep.search.OptunaSweeper")
    Sweep.current = sweep
    try:
        yield
    finally:
        Sweep.current = None
        known.clear()
        known.update(before)

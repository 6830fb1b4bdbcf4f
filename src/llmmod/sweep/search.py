"""A search with Optuna: a study on the disk suggests each trial, and each trial is a job.

It uses Optuna's ask-and-tell interface, so any of Hydra's launchers can run the trials, and several processes and machines can share the
storage. If a process is killed, its unfinished trials are enqueued again. Optuna is imported when a search begins.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from llmmod.errors import ConfigError, Problem, Pruned, did_you_mean, one_line
from llmmod.files.lock import is_alive, this_process
from llmmod.sweep.launch import LaunchingSweeper, begin, launch, side_by_side
from llmmod.sweep.plan import Planned, Sweep, can_resume, parsed, run_again, set_aside, still_runs, write_manifest
from llmmod.sweep.results import PRUNED, Goal, Job, job_directory, mark_failed, read_job
from llmmod.sweep.space import Parameter, choose, combinations, fixed_values, search_space

TRIAL = "LLMMOD_TRIAL"  # the environment variable that gives a job its trial
_OWNER = "owner"  # attribute of a trial: the process that asked for it, with the directory of its sweep
_RETRIED = "retried"
_RESUMES = "resumes"  # attribute of a trial: the number of the trial whose checkpoints it resumes from
SAMPLERS = {"tpe": "TPESampler", "gp": "GPSampler", "cmaes": "CmaEsSampler", "random": "RandomSampler", "grid": "RandomSampler"}
PRUNERS = {"median": "MedianPruner", "hyperband": "HyperbandPruner"}


def load_optuna() -> Any:
    """The optuna module, with its logging turned down.

    Raises:
        ConfigError: it isn't installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(Problem("hydra/sweeper", "llmmod_optuna needs optuna", do="pip install 'llmmod[sweep]'")) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_storage(text: str) -> Any:
    """An optuna storage: from a URL such as `sqlite:///study.db`, else a journal file."""
    optuna = load_optuna()
    if "://" in text:
        return optuna.storages.get_storage(text)
    Path(text).parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(text))


def make_pruner(name: str | None, options: Mapping[str, Any]) -> Any:
    """An optuna pruner by its name; None: one that never prunes."""
    pruners = load_optuna().pruners
    return pruners.NopPruner() if name is None else getattr(pruners, PRUNERS[name])(**options)


def report_evaluation(number: int, metrics: Mapping[str, float]) -> None:
    """Report an evaluation to the study of this process's trial. Does nothing if this process doesn't run a trial that can be pruned.

    Args:
        number: the number of the evaluation in this run, from 1.
        metrics: the metrics of the evaluation.

    Raises:
        Pruned: the pruner ends the trial.
    """
    said = json.loads(os.environ[TRIAL])
    value = metrics.get(said["metric"])
    if value is None:
        return
    optuna = load_optuna()
    pruner = make_pruner(said["pruner"], said["pruner_options"])
    storage = open_storage(said["storage"])
    study = optuna.load_study(study_name=said["study"], storage=storage, pruner=pruner)
    number_of_study = storage.get_study_id_from_name(said["study"])
    trial = optuna.trial.Trial(study, storage.get_trial_id_from_study_id_trial_number(number_of_study, said["number"]))
    trial.report(float(value), step=number)
    if trial.should_prune():
        text = f"Pruned at evaluation {number}, with {said['metric']}={value:.6g}: other trials were better by then"
        raise Pruned(text, {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))})


class OptunaSweeper(LaunchingSweeper):
    """`hydra/sweeper=llmmod_optuna`; conf/hydra/sweeper/llmmod_optuna.yaml explains each argument."""

    def __init__(
        self,
        n_trials: int | None,
        n_jobs: int | None,
        sampler: str,
        sampler_options: Mapping[str, Any] | None,
        pruner: str | None,
        pruner_options: Mapping[str, Any] | None,
        storage: str | None,
        study_name: str,
        seed: int | None,
        params: Mapping[str, Any] | None,
        max_batch_size: int | None,
    ) -> None:
        self._n_trials, self._n_jobs, self._seed, self._params = n_trials, n_jobs, seed, _plain(params)
        self._sampler, self._sampler_options = sampler, _plain(sampler_options)
        self._pruner, self._pruner_options = pruner, _plain(pruner_options)
        self._storage, self._study_name = storage, study_name

    def sweep(self, arguments: list[str]) -> None:
        """Run the wanted number of trials.

        Raises:
            ConfigError: an argument of the sweeper is wrong, or the jobs don't have the metric.
        """
        assert self.config is not None
        optuna = load_optuna()
        sweep = Sweep.current
        assert sweep is not None
        self._check(sweep.goal)
        overrides = parsed([*(f"{key}={value}" for key, value in self._params.items()), *arguments])
        space = search_space(overrides)
        with begin(self.config) as (sweep, sweep_dir):
            self._search(optuna, sweep, sweep_dir, overrides, space)

    def _search(self, optuna: Any, sweep: Sweep, sweep_dir: Path, overrides: Sequence[Override], space: Sequence[Parameter]) -> None:
        assert self.config is not None
        assert self.launcher is not None
        fixed, storage = dict(fixed_values(overrides)), self._storage or str(sweep_dir / "study.log")
        study = self._open_study(optuna, storage, sweep.goal)
        write_manifest(sweep_dir, sweep, [], dropped=self._take_up(optuna, study, sweep_dir, sweep))
        trials = self._n_trials
        if self._sampler == "grid":
            grid = combinations(space, fixed)
            trials = min(trials or len(grid), len(grid))
            for params in grid[:trials]:
                study.enqueue_trial({p.key: _stored(p, params[p.key]) for p in space if p.key in params}, skip_if_exists=True)
        lines = [o.input_line or "" for o in overrides if not o.is_sweep_override()]
        hydras = [o.input_line or "" for o in parsed(sweep.arguments) if o.is_hydra_override() and not o.is_sweep_override()]
        at_once = self._n_jobs or side_by_side(self.config, trials or 1)
        while asked := self._ask(optuna, study, sweep_dir, at_once, trials):
            batch = [(trial, self._planned(trial, [*lines, *choose(space, trial, fixed)], storage, sweep_dir, sweep)) for trial in asked]
            valid = [(trial, job) for trial, job in batch if self._is_valid(sweep, sweep_dir, study, trial, job, hydras)]
            jobs = [job for _, job in valid]
            write_manifest(sweep_dir, sweep, jobs)
            launch(self.launcher, self.config, jobs)
            for trial, _ in valid:
                self._tell(optuna, study, trial.number, sweep_dir, sweep.goal)

    def _check(self, goal: Goal) -> None:
        """Raise a ConfigError for wrong arguments."""
        problems = []
        for key, value, known in (("sampler", self._sampler, SAMPLERS), ("pruner", self._pruner, PRUNERS)):
            if value is not None and value not in known:
                problems.append(Problem(f"hydra.sweeper.{key}", f"'{value}' is not a {key}", did_you_mean(str(value), known)))
        if self._n_trials is None and self._sampler != "grid":
            problems.append(Problem("hydra.sweeper.n_trials", "null, and only a grid ends by itself", do="Set it"))
        if self._pruner is not None and len(goal.metrics) > 1:
            found = f"'{self._pruner}' compares trials by one metric, but sweep.metric has several"
            problems.append(Problem("hydra.sweeper.pruner", found, do="Leave it out"))
        if problems:
            raise ConfigError(problems)

    def _open_study(self, optuna: Any, storage: str, goal: Goal) -> Any:
        assert self.config is not None
        directions = ["maximize" if up else "minimize" for up in goal.maximize]
        named = {"storage": open_storage(storage), "study_name": self._study_name}
        study = optuna.create_study(**named, directions=directions, load_if_exists=True)
        seed = self._seed if self._seed is not None or self._storage is not None else int(self.config.seed)
        if seed is not None:  # a resumed study must not draw the same values again
            seed += len(study.get_trials(deepcopy=False))
        try:
            study.sampler = getattr(optuna.samplers, SAMPLERS[self._sampler])(seed=seed, **self._sampler_options)
            study.pruner = make_pruner(self._pruner, self._pruner_options)
        except (TypeError, ValueError, ImportError) as error:
            raise ConfigError(Problem("hydra.sweeper", f"Optuna refuses its options: {one_line(error)}")) from error
        if [direction.name.lower() for direction in study.directions] != directions:
            found = f"the study '{self._study_name}' in {storage} was made for {[d.name.lower() for d in study.directions]}"
            raise ConfigError(Problem("sweep.direction", found, do="Give another hydra.sweeper.study_name"))
        return study

    def _take_up(self, optuna: Any, study: Any, sweep_dir: Path, sweep: Sweep) -> set[int]:
        """Report trials that a dead process finished; enqueue its open trials, or all failed ones, again; return their numbers."""
        states = optuna.trial.TrialState
        retried = set(study.user_attrs.get(_RETRIED, []))
        running = study.get_trials(deepcopy=False, states=[states.RUNNING])
        lost = [trial for trial in running if self._is_lost(trial, sweep_dir, sweep)]
        for trial in [*lost]:
            directory = job_directory(sweep_dir, trial.number)
            if directory is not None and read_job(directory).ended_well:
                self._tell(optuna, study, trial.number, sweep_dir, sweep.goal)
                lost.remove(trial)
            elif directory is not None and still_runs(directory):
                lost.remove(trial)
        failed = study.get_trials(deepcopy=False, states=[states.FAIL]) if sweep.resumed else []
        again = [trial for trial in [*lost, *failed] if trial.number not in retried]
        for trial in again:
            if trial.state == states.RUNNING:
                study.tell(trial.number, state=states.FAIL)
            directory = job_directory(sweep_dir, trial.number)
            resumes = directory is not None and self._storage is None and can_resume(directory, trial.number)
            study.enqueue_trial(trial.params, user_attrs={_RESUMES: trial.number} if resumes else None)
            if directory is not None and not resumes:
                set_aside(directory)
        study.set_user_attr(_RETRIED, sorted(retried | {trial.number for trial in again}))
        return {trial.number for trial in again}

    def _ask(self, optuna: Any, study: Any, sweep_dir: Path, at_once: int, trials: int | None) -> list[Any]:
        """The next trials; fewer than `at_once` at the end. A trial that was enqueued again counts once."""
        asked: list[Any] = []
        while len(asked) < at_once:
            retried = set(study.user_attrs.get(_RETRIED, []))
            states = optuna.trial.TrialState
            begun = [t for t in study.get_trials(deepcopy=False) if t.state != states.WAITING and t.number not in retried]
            if trials is not None and len(begun) >= trials:
                break
            trial = study.ask()
            trial.set_user_attr(_OWNER, {**this_process(), "directory": str(sweep_dir.resolve())})
            asked.append(trial)
        return asked

    def _is_lost(self, trial: Any, sweep_dir: Path, sweep: Sweep) -> bool:
        """Whether the process that asked for a trial is gone. This process has locked the sweep's directory, so its trials are ours."""
        owner = trial.user_attrs.get(_OWNER)
        if owner is None:  # a trial does not have an owner yet right after `ask`
            return sweep.resumed
        mine = owner.get("directory") == str(sweep_dir.resolve()) or this_process().items() <= owner.items()
        return mine or not is_alive(owner)

    def _planned(self, trial: Any, overrides: list[str], storage: str, sweep_dir: Path, sweep: Sweep) -> Planned:
        job, before = Planned(trial.number, overrides, self._environment(storage, trial.number, sweep.goal)), trial.user_attrs.get(_RESUMES)
        if before is None or not (sweep_dir / str(before)).is_dir():
            return job
        return run_again(job, (sweep_dir / str(before)).rename(sweep_dir / str(trial.number)))

    def _environment(self, storage: str, number: int, goal: Goal) -> dict[str, str]:
        if self._pruner is None:
            return {}
        place = storage if "://" in storage else str(Path(storage).absolute())
        said = {"storage": place, "study": self._study_name, "number": number, "metric": goal.metrics[0]}
        return {TRIAL: json.dumps({**said, "pruner": self._pruner, "pruner_options": self._pruner_options})}

    def _is_valid(self, sweep: Sweep, sweep_dir: Path, study: Any, trial: Any, job: Planned, hydras: Sequence[str]) -> bool:
        """Whether a trial's configuration is valid; if not, the study learns that the trial failed, and it isn't launched."""
        try:
            sweep.compose([*job.overrides, *hydras], job_num=job.number)
        except ConfigError as error:
            print(f"In the trial {' '.join(job.overrides)}:\n{error}", file=sys.stderr)
            mark_failed(sweep_dir, job.number, job.overrides, str(error), exit_code=error.exit_code)
            study.tell(trial.number, state=load_optuna().trial.TrialState.FAIL)
            return False
        return True

    def _tell(self, optuna: Any, study: Any, number: int, sweep_dir: Path, goal: Goal) -> None:
        states = optuna.trial.TrialState
        directory = job_directory(sweep_dir, number)
        ended = None if directory is None else read_job(directory)
        if ended is not None and ended.status == PRUNED:
            study.tell(number, state=states.PRUNED)
            return
        values = goal.values(ended.metrics) if ended is not None and ended.status == "completed" else None
        study.tell(number, values, state=states.FAIL if values is None else states.COMPLETE)
        if ended is not None and ended.status == "completed" and values is None:
            problem = _no_metric(goal, ended)
            mark_failed(sweep_dir, number, ended.arguments, str(problem), exit_code=ConfigError.exit_code)
            if not study.get_trials(deepcopy=False, states=[states.COMPLETE, states.PRUNED]):
                raise ConfigError(problem)


def _no_metric(goal: Goal, job: Job) -> Problem:
    missing = [name for name in goal.metrics if name not in job.metrics]
    if not missing:
        return Problem("sweep.metric", f"{', '.join(goal.metrics)} of job {job.name} is not a finite number")
    return Problem("sweep.metric", f"job {job.name} doesn't have a metric '{missing[0]}'", did_you_mean(missing[0], job.metrics))


def _plain(options: Any) -> dict[str, Any]:
    return OmegaConf.to_container(options) if OmegaConf.is_config(options) else dict(options or {})  # type: ignore[return-value]


def _stored(parameter: Parameter, text: str) -> Any:
    """The value of a parameter as a study stores it, from its text in an override."""
    return text if parameter.choices else int(text) if parameter.integer else float(text)

"""A search with Optuna through the whole of Hydra, with fast jobs, and the pruning of a trial during its training."""

import json
import math
import sys

import pytest
from light_jobs import left, sweep_of
from typed import typed

from llmmod.errors import ConfigError, Pruned
from llmmod.sweep.results import best_jobs, read_jobs
from llmmod.sweep.search import TRIAL, report_evaluation

optuna = pytest.importorskip("optuna")
LR = "training.learning_rate=tag(log, interval(1e-5, 1e-1))"
SEARCH = ["hydra/sweeper=llmmod_optuna", "smoke=true", "hydra.sweep.dir=sweep"]


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bowl(config):
    """A job whose loss is lowest at a learning rate of 1e-3."""
    left({"eval_loss": (math.log10(config.training.learning_rate) + 3) ** 2, "train_loss": 1.0})


def trials(storage="sweep/study.log"):
    kept = storage if "://" in storage else optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
    return optuna.load_study(study_name="llmmod", storage=kept).trials


@pytest.mark.parametrize(
    ("sampler", "options"),
    [("tpe", "{n_startup_trials: 1}"), ("gp", "{n_startup_trials: 1}"), ("cmaes", "{n_startup_trials: 1}")],
    ids=["tpe", "gp", "cmaes"],
)
def test_every_sampler_searches(sampler, options, monkeypatch):
    more = [f"hydra.sweeper.sampler={sampler}", f"hydra.sweeper.sampler_options={options}", "hydra.sweeper.n_trials=2"]
    sweep, code = sweep_of(bowl, *SEARCH, *more, LR, "training.weight_decay=interval(0, 0.1)", monkeypatch=monkeypatch)
    assert code == 0
    jobs = read_jobs(sweep.directory)
    assert [job.number for job in jobs] == ["0", "1"]
    best = min(trials(), key=lambda trial: trial.value)
    assert best_jobs(jobs, sweep.goal)[0].number == str(best.number)
    assert float(jobs[best.number].overrides["training.learning_rate"]) == best.params["training.learning_rate"]


def test_a_grid_has_each_combination_of_existing_parameters_once(monkeypatch):
    overrides = ["finetune=lora,full", 'finetune.r=tag("finetune=lora", choice(4, 8))', "hydra.sweeper.n_trials=null"]
    sweep, _ = sweep_of(lambda config: left({"eval_loss": 1.0}), *SEARCH, "hydra.sweeper.sampler=grid", *overrides, monkeypatch=monkeypatch)
    found = [{key: value for key, value in job.overrides.items() if key.startswith("finetune")} for job in read_jobs(sweep.directory)]
    assert found == [{"finetune": "lora", "finetune.r": "4"}, {"finetune": "lora", "finetune.r": "8"}, {"finetune": "full"}]


def test_several_metrics_have_several_best_jobs(monkeypatch):
    def job(config):
        left({"eval_loss": config.seed, "predict_rouge-l": config.seed * 2})

    more = ["sweep.metric=[eval_loss,predict_rouge-l]", "sweep.direction=[minimize,maximize]", "seed=range(1,9)"]
    sweep, _ = sweep_of(job, *SEARCH, *more, "hydra.sweeper.n_trials=3", monkeypatch=monkeypatch)
    done = trials()
    assert [trial.values for trial in done] == [[trial.params["seed"], 2 * trial.params["seed"]] for trial in done]
    assert len(best_jobs(read_jobs(sweep.directory), sweep.goal)) == len({trial.params["seed"] for trial in done}) or len(done) == 3


def test_a_trial_with_an_invalid_configuration_fails_alone(monkeypatch, capsys):
    ran = []
    sweep, _ = sweep_of(
        lambda config: ran.append(config.finetune.r) or left({"eval_loss": 1.0}),
        *SEARCH,
        "hydra.sweeper.sampler=grid",
        "hydra.sweeper.n_trials=3",
        "finetune.r=4,0,8",
        monkeypatch=monkeypatch,
    )
    assert ran == [4, 8]
    refused = read_jobs(sweep.directory)[1]
    assert (refused.status, refused.exit_code) == ("failed", 2)
    assert refused.error.startswith("finetune.r: found 0")
    assert "In the trial" in capsys.readouterr().err
    assert [trial.state.name for trial in trials()] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_search_that_was_ended_goes_on_with_what_it_left_open(monkeypatch, work):
    def dies(config):
        left({}, status="running")
        if (work / "sweep" / "2").exists() and not (work / "sweep" / "earlier").exists():
            raise KeyboardInterrupt
        bowl(config)

    sweep_of(dies, *SEARCH, LR, "hydra.sweeper.n_trials=4", monkeypatch=monkeypatch)
    assert [trial.state.name for trial in trials()] == ["COMPLETE", "COMPLETE", "RUNNING"]
    sweep, _ = sweep_of(dies, "sweep.resume=sweep", monkeypatch=monkeypatch)
    after = trials()
    assert [trial.state.name for trial in after] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert after[3].params == after[2].params
    assert (work / "sweep" / "earlier" / "2-1").is_dir()
    assert [(job.number, job.status) for job in read_jobs(sweep.directory)] == [(n, "completed") for n in "0134"]
    assert len({trial.params["training.learning_rate"] for trial in after}) == 4  # each is drawn only once


def test_a_result_reaches_the_study_even_if_the_sweep_was_killed_first(monkeypatch, work):
    def dies(config):
        bowl(config)
        if (work / "sweep" / "1").exists() and not (work / "sweep" / "2").exists():
            raise KeyboardInterrupt

    sweep_of(dies, *SEARCH, LR, "hydra.sweeper.n_trials=3", monkeypatch=monkeypatch)
    assert [trial.state.name for trial in trials()] == ["COMPLETE", "RUNNING"]
    sweep_of(bowl, "sweep.resume=sweep", monkeypatch=monkeypatch)
    assert [trial.state.name for trial in trials()] == ["COMPLETE"] * 3
    assert not (work / "sweep" / "earlier").exists()


def test_sweeps_share_a_study(monkeypatch, work):
    storage = "sqlite:///study.db"
    optuna.create_study(study_name="llmmod", storage=storage).ask()  # by a process that has just started
    for directory, count in (("first", 3), ("second", 4)):
        own = ["hydra/sweeper=llmmod_optuna", "smoke=true", f"hydra.sweep.dir={directory}", f"hydra.sweeper.storage={storage}"]
        sweep_of(bowl, *own, LR, f"hydra.sweeper.n_trials={count}", monkeypatch=monkeypatch)
    assert [trial.state.name for trial in trials(storage)] == ["RUNNING", *["COMPLETE"] * 3]
    assert [job.number for job in read_jobs(work / "second")] == ["3"]


def test_a_metric_that_no_job_has_ends_the_search(monkeypatch):
    with pytest.raises(ConfigError, match=r"job 0 doesn't have a metric 'eval_los'\. Did you mean 'eval_loss'\?"):
        sweep_of(bowl, *SEARCH, LR, "sweep.metric=eval_los", monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.sweeper.sampler=tpee", "hydra.sweeper.sampler: 'tpee' is not a sampler. Did you mean 'tpe'?"),
        ("hydra.sweeper.pruner=best", "hydra.sweeper.pruner: 'best' is not a pruner"),
        ("hydra.sweeper.n_trials=null", "hydra.sweeper.n_trials: null, and only a grid ends by itself"),
        ("hydra.sweeper.sampler_options={startup: 1}", "Optuna refuses its options"),
        ("finetune.rr=range(1,9)", "finetune.rr: no such field. Did you mean 'r'?"),
    ],
    ids=["sampler", "pruner", "n_trials", "options", "key"],
)
def test_a_wrong_argument_is_refused_before_anything_runs(override, message):
    done = typed("-m", *SEARCH, LR, override)
    assert done.code == 2
    assert message in done.said


def test_a_trial_is_ended_where_others_were_better(monkeypatch):
    def job(config):
        try:
            for number in range(1, 5):
                report_evaluation(number, {"eval_loss": config.seed / number})
        except Pruned as error:
            left(error.metrics, status="pruned")
        else:
            left({"eval_loss": config.seed / 4})

    options = "hydra.sweeper.pruner_options={max_resource: 4, min_resource: 1, reduction_factor: 4}"
    more = ["hydra.sweeper.pruner=hyperband", options, "hydra.sweeper.sampler=grid", "seed=1,2,3,4,5,6"]
    sweep, code = sweep_of(job, *SEARCH, *more, monkeypatch=monkeypatch)
    assert code == 0
    jobs = read_jobs(sweep.directory)
    assert jobs[0].status == "completed"
    assert "pruned" in {job.status for job in jobs}
    assert all(job.ended_well for job in jobs)
    assert [trial.state.name == "PRUNED" for trial in trials()] == [job.status == "pruned" for job in jobs]


def test_a_training_reports_its_evaluations_and_leaves_its_curve_when_it_is_pruned(monkeypatch, work):
    from types import SimpleNamespace

    from transformers import TrainerState

    from llmmod.trainers.callbacks.interrupt import StopWhenPruned

    study = optuna.create_study(
        study_name="s", storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("study.log"))
    )
    for value in (1.0, 1.0):
        trial = study.ask()
        trial.report(value, step=1)
        study.tell(trial, value)
    said = {"storage": str(work / "study.log"), "study": "s", "metric": "eval_loss", "pruner": "median"}
    monkeypatch.setenv(TRIAL, json.dumps({**said, "number": study.ask().number, "pruner_options": {"n_startup_trials": 1}}))
    args, state = (
        SimpleNamespace(output_dir=str(work), world_size=1),
        TrainerState(global_step=0, log_history=[{"step": 5, "eval_loss": 2.0}]),
    )
    callback = StopWhenPruned()
    callback.on_evaluate(args, state, None, metrics={"eval_loss": 9.0})  # before the first step, this evaluation isn't compared
    state.global_step = 5
    with pytest.raises(Pruned, match="Pruned at evaluation 1, with eval_loss=2"):
        callback.on_evaluate(args, state, None, metrics={"eval_loss": 2.0, "epoch": 1.0})
    assert json.loads((work / "trainer_state.json").read_text())["log_history"] == [{"step": 5, "eval_loss": 2.0}]


def test_a_real_search_trains_and_names_the_best_run(work):
    done = typed(
        "-m", *SEARCH, "pipeline=[train]", "hydra.sweeper.n_trials=2", LR.replace("training", "finetune"), "sweep.metric=train_loss"
    )
    assert done.code == 0, done.said
    assert "The best: job " in done.said
    assert "optuna" in sys.modules
    assert {job.status for job in read_jobs(work / "sweep")} == {"completed"}

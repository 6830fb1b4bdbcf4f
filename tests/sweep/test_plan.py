"""The jobs of a command line, and those that remain when a sweep is resumed."""

import json
from functools import partial

import pytest
import yaml
from hydra.core.config_store import ConfigStore

from llmmod.config.validate import compose_validated
from llmmod.errors import ConfigError
from llmmod.sweep.plan import Planned, plan_sweep, planned_jobs, resumed_arguments, sweep_jobs, write_manifest

compose = partial(compose_validated, with_hydra=True)


def test_jobs_are_the_product_in_the_basic_sweepers_order():
    jobs = sweep_jobs(["training.learning_rate=1e-5,1e-4", "finetune.r=4,8", "smoke=true"])
    assert [sorted(job) for job in jobs] == [
        sorted([f"training.learning_rate={rate}", f"finetune.r={r}", "smoke=True"]) for rate in ("1e-05", "0.0001") for r in (4, 8)
    ]


def test_ranges_and_groups_vary_too():
    jobs = sweep_jobs(["model=llama,bloom", "seed=range(0,3)"])
    assert len(jobs) == 6
    assert ["model=bloom", "seed=2"] in jobs


@pytest.mark.parametrize(
    ("override", "message"),
    [("training.learning_rate=[1,", "-m: "), ("finetune.r=interval(1, 9)", "hydra/sweeper=llmmod_optuna")],
    ids=["unreadable", "interval"],
)
def test_an_override_that_is_no_list_of_values_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        sweep_jobs([override])


def test_a_wrong_job_is_reported_and_the_others_are_planned(capsys):
    sweep = plan_sweep(["finetune.r=4,0", "smoke=true", "hydra.job.chdir=false", "sweep.direction=maximize"], compose, resumed=False)
    assert sweep.jobs == [["finetune.r=4", "smoke=True", "sweep.direction=maximize"]]
    assert [job for job, _ in sweep.refused] == [["finetune.r=0", "smoke=True", "sweep.direction=maximize"]]
    assert (sweep.goal.metrics, sweep.goal.maximize) == (("eval_loss",), (True,))
    said = capsys.readouterr().err
    assert "finetune.r: found 0" in said
    assert "1 of 2 jobs can't be run; the others are." in said


SLURM = "hydra/launcher: submitit_slurm submits jobs by Slurm's sbatch and srun, and this machine doesn't have "


@pytest.mark.parametrize("there", [[], ["sbatch"], ["sbatch", "srun"]], ids=" ".join)
def test_slurm_is_refused_where_there_is_none(there, monkeypatch, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    own = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1"]
    if len(there) == 2:
        assert plan_sweep([*own, "seed=1,2", "smoke=true"], compose, resumed=False).jobs == [
            ["seed=1", "smoke=True"],
            ["seed=2", "smoke=True"],
        ]
        return
    with pytest.raises(ConfigError) as caught:
        plan_sweep([*own, "seed=1,2", "smoke=true"], compose, resumed=False)
    missing = " or ".join(name for name in ("sbatch", "srun") if name not in there)
    assert str(caught.value) == f"{SLURM}{missing}. Type the command on a login node of the cluster, or use submitit_local."


def test_a_launcher_whose_package_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("llmmod.config.validate.pipeline.find_module", lambda name: None)
    with pytest.raises(ConfigError, match=r"^hydra/launcher: llmmod_ray needs ray\. pip install 'llmmod\[ray\]'\.$"):
        plan_sweep(["hydra/launcher=llmmod_ray", "seed=1,2", "smoke=true"], compose, resumed=False)
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "submitit_local.yaml")
    with pytest.raises(ConfigError, match=r"^hydra/launcher=submitit_local: isn't installed\. pip install 'llmmod\[slurm\]'\.$"):
        plan_sweep(["hydra/launcher=submitit_local", "seed=1,2", "smoke=true"], compose, resumed=False)


def test_the_sweeper_s_params_are_values_as_well():
    sweep = plan_sweep(["hydra.sweeper.params={finetune.r:'4,8'}", "seed=1,2", "smoke=true"], compose, resumed=False)
    assert sweep.jobs == [[f"finetune.r={r}", f"seed={seed}", "smoke=True"] for r in (4, 8) for seed in (1, 2)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep.direction=up", "seed=1,2"], "sweep.direction: found 'up'"),
        (["sweep.metric=[eval_loss,train_loss]", "sweep.direction=[minimize]", "seed=1,2"], "1 directions for 2 metrics"),
        (["sweep.metric=3", "seed=1,2"], "sweep.metric: found 3"),
    ],
    ids=["direction", "number", "type"],
)
def test_the_goal_of_a_sweep_is_checked(overrides, message):
    with pytest.raises(ConfigError, match=message):
        plan_sweep(overrides, compose, resumed=False)


@pytest.fixture
def ended(tmp_path):
    """A sweep of four jobs: one completed, one failed, one didn't start, and one was refused."""
    arguments = ["finetune.r=4,8,16,32", "hydra.sweep.dir=elsewhere", "hydra/launcher=basic"]
    jobs = [Planned(number, [f"finetune.r={r}"]) for number, r in enumerate((4, 8, 16))]
    sweep = plan_sweep(["finetune.r=4,8"], compose, resumed=False)
    sweep.arguments = arguments
    write_manifest(tmp_path, sweep, jobs)
    for number, status in enumerate(("completed", "failed")):
        (tmp_path / str(number) / ".hydra").mkdir(parents=True)
        (tmp_path / str(number) / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(jobs[number].overrides))
        (tmp_path / str(number) / "run.json").write_text(json.dumps({"status": status}))
    return tmp_path


def test_what_is_missing_or_failed_is_run_under_its_number_and_nothing_else(ended):
    jobs = [[f"finetune.r={r}"] for r in (4, 8, 16, 32)]
    assert planned_jobs(ended, jobs, resumed=True) == [Planned(1, jobs[1]), Planned(2, jobs[2]), Planned(3, jobs[3])]
    assert (ended / "earlier" / "1-1" / "run.json").is_file()
    assert not (ended / "1").exists()
    assert (ended / "0").is_dir()


def test_a_sweep_goes_on_with_its_own_arguments(ended):
    found = resumed_arguments([f"sweep.resume={ended}", "hydra/launcher=joblib"])
    assert found == ["finetune.r=4,8,16,32", "hydra/launcher=joblib", f"hydra.sweep.dir='{ended}'"]
    assert resumed_arguments(["finetune.r=4"]) is None
    assert resumed_arguments(["sweep.resume=null"]) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep.resume=nowhere"], "sweep.resume: 'nowhere' does not exist"),
        (["sweep.resume=tests"], "'tests' is not a sweep's directory"),
        (["finetune.r=64", "sweep.resume=ENDED"], "finetune.r=64: a resumed sweep keeps its jobs"),
    ],
    ids=["missing", "another", "changing"],
)
def test_what_can_t_go_on_is_refused(ended, tmp_path_factory, monkeypatch, overrides, message):
    work = tmp_path_factory.mktemp("work")
    (work / "tests").mkdir()
    monkeypatch.chdir(work)
    with pytest.raises(ConfigError, match=message):
        resumed_arguments([text.replace("ENDED", str(ended)) for text in overrides])

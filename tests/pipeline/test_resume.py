"""The command that resumes a run, and the run that `auto_resume` continues."""

from __future__ import annotations

import json
import os
import shlex

import pytest
from omegaconf import OmegaConf
from typed import typed

import llmmod
from llmmod.config.compose import to_root
from llmmod.errors import ConfigError
from llmmod.pipeline.record import commands_of, directory_to_go_on_in, set_resume

RUN = ["stage=dpo", "finetune=full", "training.learning_rate=1e-4"]


def composed(*overrides):
    return llmmod.compose(list(overrides))


def test_the_resume_command(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMMOD_ALLOW", "mine")
    root = to_root(composed(*RUN))
    argv = ["/usr/bin/llmmod", "--config-dir", "my conf", "-cn=own", *RUN]
    overrides = [*RUN, "+training.resume_from_checkpoint=false", "output_dir=elsewhere", "auto_resume=true"]
    found = commands_of(argv, overrides, root, tmp_path)
    assert found["command"] == shlex.join(["llmmod", "--config-dir", "my conf", "-cn=own", "--allow=mine", *overrides])
    goes_on = [*RUN, f"output_dir={tmp_path}", "training.resume_from_checkpoint=true"]
    assert found["resume_command"] == shlex.join(["llmmod", "--config-dir", "my conf", "-cn=own", "--allow=mine", *goes_on])
    assert found["cwd"] == os.getcwd()
    composed(*goes_on)


def test_each_training_step_has_its_own_key(tmp_path):
    root = to_root(composed("experiment=rlhf", "smoke=true"))
    command = commands_of(["python/__main__.py"], ["experiment=rlhf"], root, tmp_path / "a b, c")["resume_command"]
    assert command.startswith("python -m llmmod experiment=rlhf ")
    words = shlex.split(command)[3:]
    assert [word for word in words if "resume" in word] == [f"steps.{s}.training.resume_from_checkpoint=true" for s in ("sft", "rm", "ppo")]
    assert composed(*words, "smoke=true").output_dir == str(tmp_path / "a b, c")
    set_resume(root)
    assert [root.steps[step].training.resume_from_checkpoint for step in ("sft", "rm", "ppo")] == [True] * 3


def test_a_run_that_trains_nothing_has_none(tmp_path):
    root = to_root(composed("pipeline=[preview]"))
    assert commands_of(["llmmod"], [], root, tmp_path)["resume_command"] is None


def left(directory, config, status):
    """Write a run's directory."""
    (directory / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, directory / ".hydra" / "config.yaml")
    (directory / "run.json").write_text(json.dumps({"status": status}))
    (directory / "metrics.json").write_text("{}")
    return directory


def test_a_chosen_directory_is_resumed_unless_it_has_another_run(tmp_path):
    config = composed(*RUN, f"output_dir={tmp_path / 'run'}", "auto_resume=true")
    assert directory_to_go_on_in(config, given=True) == tmp_path / "run"
    left(tmp_path / "run", composed(*RUN, "training.resume_from_checkpoint=true", "output_dir=x"), "interrupted")
    assert directory_to_go_on_in(config, given=True) == tmp_path / "run"
    other = composed(*RUN, "seed=7", "training.learning_rate=1e-3", f"output_dir={tmp_path / 'run'}", "auto_resume=true")
    with pytest.raises(ConfigError) as told:
        directory_to_go_on_in(other, given=True)
    assert str(told.value).startswith(f"output_dir: '{tmp_path / 'run'}' contains a run of another configuration: ")
    assert "seed was 42, is 7" in str(told.value)
    assert "training.learning_rate was 0.0001, is 0.001" in str(told.value)


def test_a_token_is_never_shown(tmp_path):
    left(tmp_path / "run", composed(*RUN, "hub.token=hf_secret"), "interrupted")
    with pytest.raises(ConfigError) as told:
        directory_to_go_on_in(composed(*RUN, f"output_dir={tmp_path / 'run'}", "auto_resume=true"), given=True)
    assert "hub.token was " in str(told.value)
    assert "hf_secret" not in str(told.value)


def test_otherwise_the_newest_unfinished_run_of_the_same_configuration_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, other = composed(*RUN, "auto_resume=true"), composed(*RUN, "seed=7")
    assert directory_to_go_on_in(config, given=False) is None
    here = tmp_path / config.output_dir
    older = left(here.with_name("2026-01-01_00-00-00"), config, "interrupted")
    assert (tmp_path / directory_to_go_on_in(config, given=False)) == older
    newer = left(here.with_name("2026-01-02_00-00-00"), config, "running")
    left(here.with_name("2026-01-03_00-00-00"), other, "interrupted")
    assert (tmp_path / directory_to_go_on_in(config, given=False)) == newer
    left(here.with_name("2026-01-04_00-00-00"), config, "completed")
    assert directory_to_go_on_in(config, given=False) is None


def test_the_second_of_two_identical_commands_writes_nothing(tmp_path, monkeypatch):
    from holder import held_by_another

    monkeypatch.chdir(tmp_path)
    with held_by_another(tmp_path / "run") as process:
        for more in ([], ["training.resume_from_checkpoint=true"]):
            done = typed("output_dir=run", "smoke=true", *more)
            assert done.code == 2
            assert f"output_dir: 'run' is held by process {process}" in done.said
            assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]

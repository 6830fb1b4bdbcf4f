"""When a training step reuses an earlier run's result, and when later runs find its result."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llmmod.cache.content import NoIdentityError
from llmmod.reuse import store as module
from llmmod.reuse.store import Reuse


@pytest.fixture
def step(tmp_path, monkeypatch):
    """A function: a run's name -> its step, whose training depends on `rate` or on the given inputs."""
    monkeypatch.setenv("LLMMOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "parts", lambda session, step, **given: {"rate": "1"})

    def make(run, *, several=True, reuse=True, checkpoint=None, **decided):
        if decided:
            monkeypatch.setattr(module, "parts", lambda session, step, **given: decided)
        directory = tmp_path / run / "sft"
        directory.mkdir(parents=True, exist_ok=True)
        root = SimpleNamespace(reuse=reuse, hub=SimpleNamespace(cache_dir=None))
        session = SimpleNamespace(step_dir=lambda name: directory, trains_several=several, root=root)
        return Reuse(session, "sft", args=None, data=None, checkpoint=checkpoint and tmp_path / checkpoint), directory

    return make


def trained(step, run, **how):
    """The step of a run, after its training."""
    made, directory = step(run, **how)
    assert made.take() is None
    (directory / "adapter_model.safetensors").write_text("weights")
    made.keep(metrics={"train_loss": 0.5}, kind="adapter")
    return made


def test_a_second_run_reuses_the_first_ones_result_and_has_the_same_identity(step, tmp_path):
    first, (second, _) = trained(step, "one"), step("two")
    result, place = second.take()
    assert (result.metrics, place) == ({"train_loss": 0.5}, tmp_path / "one" / "sft")
    assert first.identity == second.identity is not None


def test_with_reuse_false_a_run_trains_and_keeps_its_result(step):
    trained(step, "one", reuse=False)
    trained(step, "two", reuse=False)
    assert step("three")[0].take() is not None


def test_a_run_of_one_training_step_does_not_use_it(step, tmp_path):
    alone = trained(step, "one", several=False)
    assert alone.identity is None
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "one" / "sft" / "result.json").exists()


@pytest.mark.parametrize("error", [NoIdentityError, OSError])
def test_what_has_no_identity_is_trained_and_not_kept(step, monkeypatch, caplog, tmp_path, error):
    def nothing(session, step, **given):
        raise error("the data is a pipe")

    monkeypatch.setattr(module, "parts", nothing)
    caplog.set_level("INFO", "llmmod.train")
    assert trained(step, "one").identity is None
    assert "sft: later runs can't reuse it: the data is a pipe" in caplog.text
    assert not (tmp_path / "one" / "sft" / "result.json").exists()


def test_a_resumed_training_has_the_identity_of_the_one_that_began(step, tmp_path):
    """It gives the same bits as the uninterrupted one; a training from another one's checkpoint doesn't."""
    step("one")[0].take()  # started and killed
    (tmp_path / "other" / "sft").mkdir(parents=True)
    assert trained(step, "two", checkpoint="other/sft/checkpoint-2").identity is None
    assert step("three")[0].take() is None
    assert trained(step, "one", checkpoint="one/sft/checkpoint-2").identity is not None
    assert step("four")[0].take()[1] == tmp_path / "one" / "sft"


def test_a_resumed_run_reuses_its_completed_steps(step, tmp_path):
    """Also if they have checkpoints."""
    trained(step, "one")
    assert step("one", checkpoint="one/sft/checkpoint-2")[0].take()[1] == tmp_path / "one" / "sft"
    (tmp_path / "one" / "sft" / "adapter_model.safetensors").write_text("damaged")
    assert step("one", checkpoint="one/sft/checkpoint-2")[0].take() is None


def test_a_new_training_in_its_directory_withdraws_a_result_first(step, tmp_path):
    trained(step, "one")
    step("one", reuse=False)[0].take()  # started again and killed
    assert step("two")[0].take() is None


def test_the_reason_for_training_is_logged(step, caplog, tmp_path):
    """The reason refers to the newest result of that name. It isn't logged without reuse, or if the result is gone."""
    caplog.set_level("INFO", "llmmod.train")
    trained(step, "one", rate="1", r="8")
    trained(step, "two", rate="2", r="8", seed="3")
    assert caplog.messages == [f"sft: trained, since this differs from {tmp_path / 'one' / 'sft'}: rate, seed"]
    caplog.clear()
    trained(step, "three", **dict.fromkeys("abcd", "new"))
    assert caplog.messages == [f"sft: trained, since this differs from {tmp_path / 'two' / 'sft'}: rate, r, seed, a and 3 more"]
    caplog.clear()
    trained(step, "four", reuse=False, rate="4")
    for run in ("one", "two", "three", "four"):
        (tmp_path / run / "sft" / "result.json").unlink()
    trained(step, "five", rate="5")
    assert caplog.messages == []

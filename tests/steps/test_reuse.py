"""When a training step reuses an earlier run's result, and when later runs find its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llmmod.cache.content import NoIdentityError
from llmmod.reuse import store as module
from llmmod.reuse.store import Reuse


@pytest.fixture
def step(tmp_path, monkeypatch):
    """Makes a step of a run, by the run's name; what decides its training is `rate`, or what is given."""
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
    """The step, trained in a run."""
    made, directory = step(run, **how)
    assert made.take() is None
    (directory / "adapter_model.safetensors").write_text("weights")
    made.keep(metrics={"train_loss": 0.5}, kind="adapter")
    return made


def test_a_second_run_takes_what_the_first_left_and_is_known_by_the_same_weights(step, tmp_path):
    first, (second, _) = trained(step, "one"), step("two")
    result, place = second.take()
    assert (result.metrics, place) == ({"train_loss": 0.5}, tmp_path / "one" / "sft")
    assert first.identity == second.identity is not None


def test_reuse_false_takes_nothing_and_leaves_all_the_same(step):
    trained(step, "one", reuse=False)
    trained(step, "two", reuse=False)
    assert step("three")[0].take() is not None


def test_a_run_of_one_training_step_has_nothing_to_do_with_it(step, tmp_path):
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


def test_a_training_that_goes_on_is_the_one_that_was_begun(step, tmp_path):
    """It gives the bits of the uninterrupted one; going on from another training's checkpoint gives something else."""
    step("one")[0].take()  # begun, and killed
    (tmp_path / "other" / "sft").mkdir(parents=True)
    assert trained(step, "two", checkpoint="other/sft/checkpoint-2").identity is None
    assert step("three")[0].take() is None
    assert trained(step, "one", checkpoint="one/sft/checkpoint-2").identity is not None
    assert step("four")[0].take()[1] == tmp_path / "one" / "sft"


def test_a_run_that_goes_on_takes_the_steps_that_had_ended(step, tmp_path):
    """They have checkpoints, too."""
    trained(step, "one")
    assert step("one", checkpoint="one/sft/checkpoint-2")[0].take()[1] == tmp_path / "one" / "sft"
    (tmp_path / "one" / "sft" / "adapter_model.safetensors").write_text("damaged")
    assert step("one", checkpoint="one/sft/checkpoint-2")[0].take() is None


def test_training_over_a_result_takes_it_back_first(step, tmp_path):
    trained(step, "one")
    step("one", reuse=False)[0].take()  # begun anew, and killed
    assert step("two")[0].take() is None


def test_why_it_is_trained_is_told(step, caplog, tmp_path):
    """By the newest result of that name; not where nobody asked for reuse, or a result is gone."""
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

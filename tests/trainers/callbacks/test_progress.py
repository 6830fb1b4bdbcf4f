"""A training's progress: the lines of the log and their numbers."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from llmmod.trainers.callbacks import progress
from llmmod.trainers.callbacks.progress import TrainingProgress, clock


@pytest.fixture
def clock_of_tests(monkeypatch):
    """A clock that the test sets."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now.s)
    return now


def run(shown, now, *, steps, resumed_at=0):
    """Run steps of 2 s and 100 tokens each, with 5 s of other work between them."""
    state = SimpleNamespace(global_step=resumed_at, max_steps=10, num_input_tokens_seen=100 * resumed_at, is_world_process_zero=True)
    shown.on_train_begin(None, state, None)
    for _ in range(steps):
        shown.on_step_begin(None, state, None)
        now.s += 2
        state.global_step += 1
        state.num_input_tokens_seen += 100
        shown.on_step_end(None, state, None)
        now.s += 5
    return state


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (36061, "10:01:01")])
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize("resumed_at", [0, 3])
def test_a_line_at_each_logging_step(clock_of_tests, caplog, resumed_at):
    caplog.set_level(logging.INFO)
    shown = TrainingProgress(bar=False)
    state = run(shown, clock_of_tests, steps=4, resumed_at=resumed_at)
    shown.on_log(None, state, None, logs={"loss": 1.23456, "learning_rate": 5e-4, "grad_norm": 2.0})
    done = 4 + resumed_at
    left = clock(2 * (10 - done))
    assert caplog.messages == [f"step {done}/10  loss 1.2346  learning rate 5.00e-04  50 tokens/s  {left} left"]


def test_an_evaluation_is_a_line_too(clock_of_tests, caplog):
    caplog.set_level(logging.INFO)
    shown = TrainingProgress(bar=False)
    state = run(shown, clock_of_tests, steps=1)
    shown.on_log(None, state, None, logs={"eval_loss": 0.5, "eval_runtime": 3.0})
    assert caplog.messages == ["step 1/10  validation loss 0.5000"]


def test_stages_with_rewards_show_them(clock_of_tests, caplog):
    caplog.set_level(logging.INFO)
    shown = TrainingProgress(bar=False)
    state = run(shown, clock_of_tests, steps=1)
    shown.on_log(None, state, None, logs={"loss": 0.0, "reward": 0.25, "reward_std": 0.1})
    shown.on_log(None, state, None, logs={"eval_reward": 0.5, "eval_score": 1.0})
    told = "loss 0.0000  reward 0.250  50 tokens/s  0:18 left"
    assert caplog.messages == [f"step 1/10  {told}", "step 1/10  reward on held-out prompts 0.500"]


def test_the_end_of_training_adds_no_line(clock_of_tests, caplog):
    caplog.set_level(logging.INFO)
    shown = TrainingProgress(bar=False)
    shown.on_log(None, run(shown, clock_of_tests, steps=1), None, logs={"train_loss": 0.5, "train_runtime": 3.0})
    assert caplog.messages == []


def test_tokens_that_are_not_counted_are_not_shown(clock_of_tests):
    shown = TrainingProgress(bar=False)
    state = run(shown, clock_of_tests, steps=2)
    assert shown.tokens_per_second(state) == 50.0
    state.num_input_tokens_seen = 0
    assert shown.tokens_per_second(state) is None


def test_the_bar_is_drawn_and_taken_away(clock_of_tests, capsys, caplog):
    caplog.set_level(logging.INFO)
    shown = TrainingProgress(bar=True)
    state = run(shown, clock_of_tests, steps=2)
    shown.on_log(None, state, None, logs={"loss": 1.5})
    shown.on_train_end(None, state, None)
    shown.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert caplog.messages == []

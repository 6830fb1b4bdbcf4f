"""A signal during training waits for the end of the step, then reaches whoever handled it before."""

from __future__ import annotations

import os
import signal

import pytest
from transformers import TrainerCallback

from llmmod.trainers.callbacks.interrupt import StopAfterStep, StoppedBetweenSteps


class Interrupting(TrainerCallback):
    """Sends this process a signal in the midst of an optimizer step, or of an evaluation."""

    def __init__(self, number, step, where="on_pre_optimizer_step"):
        self._number, self._step = number, step
        setattr(self, where, self._send)

    def _send(self, args, state, control, **kwargs):
        if state.global_step == self._step and self._number is not None:
            number, self._number = self._number, None
            os.kill(os.getpid(), number)


@pytest.fixture
def handled():
    """Signals that reached the handlers from before."""
    got = []
    before = {number: signal.signal(number, lambda n, frame: got.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    yield got
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_is_finished_first(toy_trainer, handled, number, capfd):
    stop = StopAfterStep()
    trainer = toy_trainer(callbacks=[stop, Interrupting(number, step=2)])
    with stop, pytest.raises(StoppedBetweenSteps):
        trainer.train()
    assert trainer.state.global_step == 3
    assert handled == [number]
    assert f"{number.name}: finishing this step, then saving; once more ends it at once" in capfd.readouterr().err


def test_the_end_of_an_evaluation_is_not_waited_for(toy_trainer, handled):
    stop = StopAfterStep()
    trainer = toy_trainer(callbacks=[Interrupting(signal.SIGINT, step=5, where="on_prediction_step"), stop], per_device_eval_batch_size=1)
    with stop, pytest.raises(StoppedBetweenSteps):
        trainer.train()
    assert trainer.state.global_step == 5
    assert not any(entry.get("step") == 5 and "eval_loss" in entry for entry in trainer.state.log_history)


def test_a_second_signal_is_not_held_back(handled):
    with StopAfterStep() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert handled == []
        os.kill(os.getpid(), signal.SIGINT)
        assert handled == [signal.SIGINT]
    assert stop.caught == signal.SIGINT
    assert handled == [signal.SIGINT] * 2


def test_handlers_are_given_back(handled):
    before = signal.getsignal(signal.SIGINT)
    with StopAfterStep():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    assert handled == []


def test_an_error_of_the_training_wins(handled):
    def fails():
        with StopAfterStep():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert handled == []


def test_disabled_it_leaves_signals_alone(handled):
    with StopAfterStep(enabled=False):
        os.kill(os.getpid(), signal.SIGINT)
        assert handled == [signal.SIGINT]


def test_nobody_reads_any_more(handled):
    """Ctrl-C ends the `tee` that a run's output goes through as well."""
    kept, (reader, writer) = os.dup(2), os.pipe()
    os.close(reader)
    os.dup2(writer, 2)
    try:
        with StopAfterStep() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.caught == signal.SIGINT
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)
    assert handled == [signal.SIGINT]

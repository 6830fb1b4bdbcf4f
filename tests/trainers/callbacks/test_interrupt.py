"""A signal during training takes effect at the end of the step and then reaches the previous handler."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from llmmod.trainers.callbacks.interrupt import StopAfterStep, StoppedBetweenSteps

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class InterruptingAll(TrainerCallback):
    """Like a job queue, sends a signal to the data loader's workers and then to this process, before the second half of a step."""

    def __init__(self, number):
        self._number, self.workers = number, 0
        self._others = multiprocessing.active_children()  # from other tests

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 1 and not self.workers:
            workers = [process for process in multiprocessing.active_children() if process not in self._others]
            self.workers = len(workers)
            for process in workers:
                os.kill(process.pid, self._number)
            time.sleep(0.2)
            os.kill(os.getpid(), self._number)


class Interrupting(TrainerCallback):
    """Sends this process a signal during an optimizer step or an evaluation."""

    def __init__(self, number, step, where="on_pre_optimizer_step"):
        self._number, self._step = number, step
        setattr(self, where, self._send)

    def _send(self, args, state, control, **kwargs):
        if state.global_step == self._step and self._number is not None:
            number, self._number = self._number, None
            os.kill(os.getpid(), number)


@pytest.fixture
def handled():
    """Signals that reached the previous handlers."""
    got = []
    before = {number: signal.signal(number, lambda n, frame: got.append(n)) for number in SIGNALS}
    yield got
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_step_is_finished_first(toy_trainer, handled, number, capfd):
    stop = StopAfterStep()
    trainer = toy_trainer(callbacks=[stop, Interrupting(number, step=2)])
    with stop, pytest.raises(StoppedBetweenSteps):
        trainer.train()
    assert trainer.state.global_step == 3
    assert handled == [number]
    assert f"{number.name}: finishing this step, then saving; once more ends it at once" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "handler"),
    [
        pytest.param(signal.SIGUSR2, signal.SIG_DFL, id="a queue's signal without a launcher"),
        pytest.param(signal.SIGINT, signal.SIG_IGN, id="a signal that is ignored, as in a background job"),
    ],
)
def test_a_signal_is_left_alone(number, handler):
    before = signal.signal(number, handler)
    try:
        with StopAfterStep():
            assert signal.getsignal(number) == handler
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_of_the_data_loader_work_to_the_end_of_the_step(toy_trainer, handled, number, capfd):
    """Without prefetched batches, since the step needs two more."""
    stop, signals = StopAfterStep(), InterruptingAll(number)
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "dataloader_prefetch_factor": 1}
    trainer = toy_trainer(callbacks=[stop, signals], dataloader_num_workers=1, **settings)
    with stop, pytest.raises(StoppedBetweenSteps):
        trainer.train()
    assert signals.workers == 1
    assert trainer.state.global_step == 2
    assert handled == [number]
    assert capfd.readouterr().err.count("finishing this step") == 1


def test_an_evaluation_stops_at_once(toy_trainer, handled):
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


def test_several_processes_stop_after_the_same_step(tmp_path):
    """The second process gets the signal, and again from its launcher, as with torchrun; both stop at the end of the step."""

    def one_of_two(rank):
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=rank, world_size=2)
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        args = SimpleNamespace(device=torch.device("cpu"))
        with StopAfterStep(several=True) as stop:
            stop.on_step_begin(args, None, None)
            stop.on_step_end(args, None, None)
            stop.on_step_begin(args, None, None)
            if rank == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGUSR1)
            stop.on_prediction_step(args, None, None)
            stop.on_step_end(args, None, None)
            with pytest.raises(StoppedBetweenSteps):
                stop.on_step_begin(args, None, None)
            assert stop.caught == signal.SIGUSR1

    processes = [forked(lambda rank=rank: one_of_two(rank)) for rank in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes] == [0, 0]


def forked(do):
    """The id of a new process that calls `do` and exits with 0 if it succeeds."""
    process = os.fork()
    if process:
        return process
    try:
        do()
        os._exit(0)
    finally:
        os._exit(1)


def test_the_reader_of_the_output_is_gone(handled):
    """Ctrl-C also ends a `tee` that the run's output is piped into."""
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

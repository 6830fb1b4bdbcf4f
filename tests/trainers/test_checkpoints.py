"""The best checkpoint at the end of a training, if the checkpoint is damaged or the run's directory was moved."""

from __future__ import annotations

import copy
import errno
import resource
import signal
from pathlib import Path

import pytest
from changed_bits import flip
from transformers import TrainerCallback

from llmmod.errors import RunError

# Here the highest loss counts as the best, so that the best checkpoint isn't the last.
SETTINGS = {
    "max_steps": 4,
    "eval_on_start": False,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
}


class ChangesTheBest(TrainerCallback):
    """Changes a bit of the best model's weights after the last checkpoint is written."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            flip(Path(state.best_model_checkpoint) / "model.safetensors", bit=8000)


def test_a_best_model_with_a_changed_bit_is_not_loaded(toy_trainer, tmp_path):
    trainer = toy_trainer(**SETTINGS, callbacks=[ChangesTheBest()])
    with pytest.raises(RunError) as caught:
        trainer.train()
    best, last = tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"
    assert str(caught.value) == (
        f"training.load_best_model_at_end: {best} is damaged: model.safetensors has changed since it was saved. To go on from {last} "
        "without it: training.resume_from_checkpoint=true training.load_best_model_at_end=false."
    )


def test_the_best_checkpoint_is_found_again_if_the_run_has_been_moved(toy_trainer, tiny_llama, tmp_path):
    begins = copy.deepcopy(tiny_llama)
    toy_trainer(**SETTINGS, output_dir=tmp_path / "here", model=copy.deepcopy(begins)).train()
    there = tmp_path / "here" / "checkpoint-4"
    (tmp_path / "here").rename(tmp_path / "there")
    there = tmp_path / "there"
    # save_total_limit=1 would remove a checkpoint that isn't known to be the best.
    trainer = toy_trainer(**{**SETTINGS, "max_steps": 6}, save_total_limit=1, output_dir=there, model=begins)
    trainer.train(resume_from_checkpoint=str(there / "checkpoint-4"))
    assert trainer.state.best_model_checkpoint == str(there / "checkpoint-2")
    assert [path.name for path in there.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_limit_that_torch_reached_is_named(toy_trainer, tmp_path):
    """torch.save itself only says `unexpected pos 1014592 vs 1014480`."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = toy_trainer(**SETTINGS)
    # Above the size of the weights, below that of the optimizer's state, which is twice as large.
    weights = sum(parameter.numel() * parameter.element_size() for parameter in trainer.model.parameters())
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(1.5 * weights), before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())

"""If a loss or a gradient isn't finite, the run ends before the weights change."""

from __future__ import annotations

import math

import pytest
import torch

from llmmod.errors import RunError


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture
def spoilt(toy_trainer, tiny_llama):
    """A trainer whose third step has the given loss or gradient, and the weights before that step."""

    def make(*, loss=None, gradient=None, **changes):
        trainer = toy_trainer(eval_strategy="no", eval_on_start=False, save_strategy="steps", save_steps=1.0, **changes)
        real, before = trainer.compute_loss, {}

        def compute_loss(*args, **kwargs):
            found = real(*args, **kwargs)
            if trainer.state.global_step < 2:
                return found
            before.update(weights(tiny_llama))
            if gradient is not None:
                found.register_hook(lambda grad: grad * gradient)
                return found
            return found * loss

        trainer.compute_loss = compute_loss
        return trainer, before

    return make


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number(spoilt, tiny_llama, tmp_path, value):
    trainer, before = spoilt(loss=value)
    with pytest.raises(RunError) as caught:
        trainer.train()
    message = str(caught.value)
    assert f"the loss became {value} at optimizer step 3." in message
    assert "Try a lower training.learning_rate (it was 0.01)" in message
    assert f"The last checkpoint, {tmp_path / 'checkpoint-2'}, is from before." in message
    assert all(torch.equal(p, before[name]) for name, p in tiny_llama.named_parameters())
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").is_file()


def test_transformers_filter_does_not_hide_it(spoilt):
    trainer, _ = spoilt(loss=math.nan, logging_nan_inf_filter=True)
    with pytest.raises(RunError, match="optimizer step 3"):
        trainer.train()


def test_a_gradient_that_is_no_number_is_not_applied(spoilt, tiny_llama):
    trainer, before = spoilt(gradient=math.nan)
    with pytest.raises(RunError, match="the gradient's norm became nan at optimizer step 3"):
        trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in tiny_llama.named_parameters())


def test_before_any_checkpoint(toy_trainer):
    trainer = toy_trainer(eval_strategy="no", eval_on_start=False)
    real = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: real(*args, **kwargs) * math.nan
    with pytest.raises(RunError, match=r"at optimizer step 1\..*A checkpoint had not been written yet"):
        trainer.train()


def test_an_evaluation_loss_that_is_no_number(toy_trainer, tiny_llama):
    torch.nn.init.constant_(tiny_llama.model.norm.weight, math.nan)
    with pytest.raises(RunError, match="the evaluation loss became nan at optimizer step 0"):
        toy_trainer().evaluate()

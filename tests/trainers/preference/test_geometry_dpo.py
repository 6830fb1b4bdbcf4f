"""The gradient of dpo's optimizer step doesn't depend on how pairs are divided, padded and ordered, or whether they share their prompt."""

from __future__ import annotations

import geometry
import pytest

from llmmod.data.collators import PreferenceCollator
from llmmod.trainers.preference.trainers import DpoTrainer

LOSSES = {
    "mpo": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "ipo": {"loss_type": ["ipo"]},
    "sft": {"loss_type": ["sft"]},
    "weighted": {"use_weighting": True},
    "ld": {"ld_alpha": 0.3},
}


class PreferenceCollatorLeft(PreferenceCollator):
    """The same rows padded on the left, with positions that start at a row's first token."""

    def __call__(self, examples):
        batch = super().__call__(examples)
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            for name in ("input_ids", "attention_mask", "completion_mask"):
                batch[name][row] = batch[name][row].roll(-length)
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return batch


def with_noise(model):
    """Change every parameter a little, the same way each time, so that the model differs from its reference."""
    import torch

    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def examples():
    return geometry.pairs_of_all_lengths()


@pytest.fixture
def from_start(dpo_trainer, examples, tiny_llama):
    """A function: changes -> the gradient of one step, from the same weights each time, of a model that differs from its reference."""
    gradient = geometry.pairs_gradient(dpo_trainer, examples, prepare=with_noise)
    start = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}

    def of(**changes):
        tiny_llama.load_state_dict(start)
        return gradient(**changes)

    return of


def test_however_the_pairs_are_divided_and_padded(from_start):
    expected = from_start(collator=PreferenceCollator, **geometry.divided(8, 1))
    for division in geometry.DIVISIONS:
        for collator in (None, PreferenceCollator, PreferenceCollatorLeft):
            found = from_start(collator=collator, **geometry.divided(*division))
            assert geometry.apart(found, expected) < 1e-6, (division, collator)


@pytest.mark.parametrize("loss", LOSSES)
def test_of_other_losses(from_start, loss):
    """WPO's weights are exponentials, which enlarge float32's rounding errors."""
    expected = from_start(collator=PreferenceCollator, **geometry.divided(8, 1), **LOSSES[loss])
    found = from_start(**geometry.divided(2, 4), **LOSSES[loss])
    assert geometry.apart(found, expected) < (3e-6 if loss == "weighted" else 1e-6)


def test_whatever_their_order(from_start, examples):
    expected = from_start(**geometry.divided(2, 4))
    by_length = sorted(examples, key=lambda example: -sum(map(len, example.values())))
    assert geometry.apart(from_start(train=by_length, **geometry.divided(2, 4)), expected) < 1e-6


def test_a_mean_of_the_batches_means_would_be_another(from_start, monkeypatch):
    """Shows that the comparison can fail: trl itself scales by batch."""
    expected = from_start(**geometry.divided(8, 1))
    monkeypatch.setattr(DpoTrainer, "_get_num_items_in_batch", lambda *args: None)
    monkeypatch.setattr(DpoTrainer, "loss_is_scaled_for_ga", False)
    assert geometry.apart(from_start(**geometry.divided(2, 4)), expected) > 1e-2

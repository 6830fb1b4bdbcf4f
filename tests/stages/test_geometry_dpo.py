"""The gradient of dpo's optimizer step doesn't depend on how its pairs are divided, padded, ordered, or whether they share their prompt."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from datasets import Dataset

from llmmod.data.pairs import PadPairs
from llmmod.stages.dpo import DpoTrainer

_modules = {}
for _name in ("geometry", "pairs"):
    _spec = importlib.util.spec_from_file_location(_name, Path(__file__).parent / f"{_name}.py")
    _modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_modules[_name])
geometry, pairs = _modules["geometry"], _modules["pairs"]
toy_pairs, dpo_conf, dpo_trainer = pairs.toy_pairs, pairs.dpo_conf, pairs.dpo_trainer

LOSSES = {
    "mpo": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "ipo": {"loss_type": ["ipo"]},
    "sft": {"loss_type": ["sft"]},
    "weighted": {"use_weighting": True},
    "ld": {"ld_alpha": 0.3},
}


class PadPairsLeft(PadPairs):
    """The same rows with the padding on the left, and positions that start where a row does."""

    def __call__(self, examples):
        batch = super().__call__(examples)
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            for name in ("input_ids", "attention_mask", "completion_mask"):
                batch[name][row] = batch[name][row].roll(-length)
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return batch


@pytest.fixture
def examples():
    """Seven pairs, long and short answers and prompts side by side."""
    lengths = [(9, 4, 7), (3, 1, 5), (20, 12, 2), (2, 3, 3), (6, 6, 1), (4, 14, 16), (11, 1, 1)]
    token = iter(range(5, 400))
    return [
        {name: [next(token) for _ in range(n)] for name, n in zip(("prompt_ids", "chosen_ids", "rejected_ids"), found, strict=True)}
        for found in lengths
    ]


@pytest.fixture
def gradient(dpo_trainer, examples):
    """That of one step of a trainer whose model has moved on from the reference, by changes of `training.*`."""

    def of(train=None, collator=None, **changes):
        def make(**given):
            trainer = dpo_trainer(train=Dataset.from_list(train or examples), **given)
            if collator is not None:
                trainer.data_collator = collator(trainer.processing_class)
            with_noise(trainer.model)
            return trainer

        return geometry.step_gradient(make, **changes)

    return of


def with_noise(model):
    """Every parameter a little moved, the same way each time, so that the model isn't its reference any more."""
    import torch

    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def from_start(gradient, tiny_llama):
    """The same from the same weights each time."""
    start = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}

    def of(**changes):
        tiny_llama.load_state_dict(start)
        return gradient(**changes)

    return of


def test_however_the_pairs_are_divided_and_padded(from_start):
    expected = from_start(collator=PadPairs, **geometry.divided(8, 1))
    for division in geometry.DIVISIONS:
        for collator in (None, PadPairs, PadPairsLeft):
            found = from_start(collator=collator, **geometry.divided(*division))
            assert geometry.apart(found, expected) < 1e-6, (division, collator)


@pytest.mark.parametrize("loss", LOSSES)
def test_of_other_losses(from_start, loss):
    """WPO's weights are exponentials, which make more of float32's last digit."""
    expected = from_start(collator=PadPairs, **geometry.divided(8, 1), **LOSSES[loss])
    found = from_start(**geometry.divided(2, 4), **LOSSES[loss])
    assert geometry.apart(found, expected) < (3e-6 if loss == "weighted" else 1e-6)


def test_whatever_their_order(from_start, examples):
    expected = from_start(**geometry.divided(2, 4))
    by_length = sorted(examples, key=lambda example: -sum(map(len, example.values())))
    assert geometry.apart(from_start(train=by_length, **geometry.divided(2, 4)), expected) < 1e-6


def test_a_mean_of_the_batches_means_would_be_another(from_start, monkeypatch):
    """That the comparison can fail: trl's own scaling, by batch."""
    expected = from_start(**geometry.divided(8, 1))
    monkeypatch.setattr(DpoTrainer, "_get_num_items_in_batch", lambda *args: None)
    monkeypatch.setattr(DpoTrainer, "loss_is_scaled_for_ga", False)
    assert geometry.apart(from_start(**geometry.divided(2, 4)), expected) > 1e-2

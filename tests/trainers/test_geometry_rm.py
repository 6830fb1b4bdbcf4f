"""The gradient of rm's optimizer step doesn't depend on how pairs are divided, padded and ordered, or whether they share their prompt."""

from __future__ import annotations

from functools import partial

import geometry
import pytest

from llmmod.data.collators import RewardCollator
from llmmod.trainers.rm import RmTrainer

PadLeft = partial(RewardCollator, side="left")


@pytest.fixture
def examples():
    """Pairs, each with a margin."""
    return [pair | {"margin": number / 4} for number, pair in enumerate(geometry.pairs_of_all_lengths())]


@pytest.fixture
def gradient(rm_trainer, examples):
    return geometry.pairs_gradient(rm_trainer, examples)


def test_however_the_pairs_are_divided_and_padded(gradient):
    expected = gradient(collator=RewardCollator, **geometry.divided(8, 1), center_rewards_coefficient=0.3)
    for division in geometry.DIVISIONS:
        for collator in (None, RewardCollator, PadLeft):
            found = gradient(collator=collator, **geometry.divided(*division), center_rewards_coefficient=0.3)
            assert geometry.apart(found, expected) < 1e-6, (division, collator)


def test_whatever_their_order(gradient, examples):
    expected = gradient(**geometry.divided(2, 4))
    by_length = sorted(examples, key=lambda example: -len(example["prompt_ids"]))
    assert geometry.apart(gradient(train=by_length, **geometry.divided(2, 4)), expected) < 1e-6


def test_a_mean_of_the_batches_means_would_be_another(gradient, monkeypatch):
    """Shows that the comparison can fail: trl itself scales by batch."""
    expected = gradient(**geometry.divided(8, 1))
    monkeypatch.setattr(RmTrainer, "_get_num_items_in_batch", lambda *args: None)
    monkeypatch.setattr(RmTrainer, "loss_is_scaled_for_ga", False)
    assert geometry.apart(gradient(**geometry.divided(2, 4)), expected) > 1e-2

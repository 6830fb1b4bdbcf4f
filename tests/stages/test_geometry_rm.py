"""The gradient of rm's optimizer step doesn't depend on how its pairs are divided, padded, ordered, or whether they share their prompt."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset

from llmmod.data.scored_pairs import PadPairsScored
from llmmod.stages.rm import RmTrainer

_modules = {}
for _name in ("geometry", "reward_pairs"):
    _spec = importlib.util.spec_from_file_location(_name, Path(__file__).parent / f"{_name}.py")
    _modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_modules[_name])
geometry, reward_pairs = _modules["geometry"], _modules["reward_pairs"]
toy_pairs, rm_conf, rm_trainer = reward_pairs.toy_pairs, reward_pairs.rm_conf, reward_pairs.rm_trainer
tiny_reward = reward_pairs.tiny_reward

PadLeft = partial(PadPairsScored, side="left")


@pytest.fixture
def examples():
    """Seven pairs, long and short answers and prompts side by side, each with a margin."""
    lengths = [(9, 4, 7), (3, 1, 5), (20, 12, 2), (2, 3, 3), (6, 6, 1), (4, 14, 16), (11, 1, 1)]
    token = iter(range(5, 400))
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [
        {name: [next(token) for _ in range(n)] for name, n in zip(names, found, strict=True)} | {"margin": number / 4}
        for number, found in enumerate(lengths)
    ]


@pytest.fixture
def gradient(rm_trainer, examples):
    """That of one step, by changes of `training.*`."""

    def of(train=None, collator=None, **changes):
        def make(**given):
            trainer = rm_trainer(train=Dataset.from_list(train or examples), **given)
            if collator is not None:
                trainer.data_collator = collator(trainer.processing_class)
            return trainer

        return geometry.step_gradient(make, **changes)

    return of


def test_however_the_pairs_are_divided_and_padded(gradient):
    expected = gradient(collator=PadPairsScored, **geometry.divided(8, 1), center_rewards_coefficient=0.3)
    for division in geometry.DIVISIONS:
        for collator in (None, PadPairsScored, PadLeft):
            found = gradient(collator=collator, **geometry.divided(*division), center_rewards_coefficient=0.3)
            assert geometry.apart(found, expected) < 1e-6, (division, collator)


def test_whatever_their_order(gradient, examples):
    expected = gradient(**geometry.divided(2, 4))
    by_length = sorted(examples, key=lambda example: -len(example["prompt_ids"]))
    assert geometry.apart(gradient(train=by_length, **geometry.divided(2, 4)), expected) < 1e-6


def test_a_mean_of_the_batches_means_would_be_another(gradient, monkeypatch):
    """That the comparison can fail: trl's own scaling, by batch."""
    expected = gradient(**geometry.divided(8, 1))
    monkeypatch.setattr(RmTrainer, "_get_num_items_in_batch", lambda *args: None)
    monkeypatch.setattr(RmTrainer, "loss_is_scaled_for_ga", False)
    assert geometry.apart(gradient(**geometry.divided(2, 4)), expected) > 1e-2

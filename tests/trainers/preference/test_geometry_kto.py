"""The gradient of kto's optimizer step doesn't depend on how its answers are divided, padded or ordered.

This holds for `apo_zero_unpaired`. The loss `kto` estimates the KL from the mismatched pairs of a batch, so it depends on the batch: there,
the test shows that padding and the weights of batches of different sizes don't make a difference.
"""

from __future__ import annotations

import geometry
import pytest
from preferences import judged
from ways import moved

from llmmod.data.collators import KTOCollator
from llmmod.trainers.preference.trainers import KtoTrainer

WEIGHTS = {"desirable_weight": 1.3, "undesirable_weight": 0.7}


class KTOCollatorLeft(KTOCollator):
    """The same rows padded on the left."""

    def __call__(self, examples):
        batch = super().__call__(examples)
        for prefix in ("", "KL_"):
            names = [f"{prefix}{name}" for name in ("input_ids", "attention_mask", "completion_mask")]
            for row, length in enumerate(batch[names[1]].sum(1).tolist()):
                for name in names:
                    batch[name][row] = batch[name][row].roll(-length)
        return batch


@pytest.fixture
def examples():
    """Seven judged answers."""
    return judged(geometry.pairs_of_all_lengths()).to_list()[:7]


@pytest.fixture
def gradient(kto_trainer, examples, tiny_llama):
    """A function: changes -> the gradient of one step, from the same weights each time, of a model that differs from its reference."""
    start = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    of = geometry.pairs_gradient(kto_trainer, examples, prepare=moved)

    def make(**changes):
        tiny_llama.load_state_dict(start)
        return of(**{"loss_type": "apo_zero_unpaired", **WEIGHTS, **changes})

    return make


def test_however_the_answers_are_divided_and_padded(gradient):
    expected = gradient(**geometry.divided(8, 1))
    for division in geometry.DIVISIONS:
        for collator in (None, KTOCollatorLeft):
            assert geometry.apart(gradient(collator=collator, **geometry.divided(*division)), expected) < 1e-6, (division, collator)


def test_whatever_their_order(gradient, examples):
    by_length = sorted(examples, key=lambda example: -len(example["prompt_ids"]))
    expected = gradient(**geometry.divided(2, 4))
    assert geometry.apart(gradient(train=by_length, **geometry.divided(2, 4)), expected) < 1e-6


def test_the_loss_kto_whatever_the_padding(gradient):
    expected = gradient(loss_type="kto", **geometry.divided(4, 2))
    assert geometry.apart(gradient(loss_type="kto", collator=KTOCollatorLeft, **geometry.divided(4, 2)), expected) < 1e-6


def test_a_mean_of_the_batches_means_would_be_another(gradient, monkeypatch):
    """Shows that the comparison can fail: trl itself scales by batch."""
    expected = gradient(**geometry.divided(8, 1))
    monkeypatch.setattr(KtoTrainer, "_get_num_items_in_batch", lambda *args: None)
    monkeypatch.setattr(KtoTrainer, "loss_is_scaled_for_ga", False)
    assert geometry.apart(gradient(**geometry.divided(2, 4)), expected) > 1e-2

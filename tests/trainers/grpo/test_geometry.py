"""The gradient of a generation is the same for every division of an optimizer step into micro-batches: within 1e-9 in float64.

In float32 it is within 2e-6: an advantage is an answer's distance from the others, so most of the sum cancels out.

`bnpo` differs by definition: its mean is over the tokens of a micro-batch.
"""

from __future__ import annotations

import geometry
import pytest
import torch

from llmmod.trainers.online.grpo import GrpoTrainer


@pytest.fixture
def gradient(grpo_trainer, tiny_llama):
    """The gradient of the first step of a generation of eight answers, of 1 to 9 tokens, to two prompts."""
    generator = torch.Generator().manual_seed(0)
    answers = [torch.randint(5, 400, (length,), generator=generator).tolist() for length in (1, 9, 3, 1, 7, 2, 5, 4)]

    def of(division, **changes):
        def make(**settings):
            trainer = grpo_trainer(tiny_llama.double(), **settings)
            trainer._generate_single_turn = lambda *_: (answers, None)
            return trainer

        settings = {"max_completion_length": 9, "beta": 0.1, "num_iterations": 2, "num_generations": 4}
        return geometry.step_gradient(make, **settings, **geometry.divided(*division), **changes)

    return of


@pytest.mark.parametrize("changes", [{"loss_type": name} for name in ("dapo", "grpo")], ids=str)
def test_the_same_gradient(gradient, changes):
    whole = gradient((8, 1), **changes)
    for division in geometry.DIVISIONS:
        assert geometry.apart(gradient(division, **changes), whole) < 1e-9, division


def test_a_mean_of_each_micro_batch_would_be_another(gradient, monkeypatch):
    """The error that the test above must find: short and long answers with the same weight."""
    whole, right = gradient((8, 1), loss_type="dapo"), GrpoTrainer.compute_loss

    def own_mean(self, model, inputs, **_):
        own = inputs["completion_mask"].sum() * self.args.steps_per_generation
        return right(self, model, inputs | {"num_items_in_batch": own})

    monkeypatch.setattr(GrpoTrainer, "compute_loss", own_mean)
    assert geometry.apart(gradient((1, 8), loss_type="dapo"), whole) > 1e-2

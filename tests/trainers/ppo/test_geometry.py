"""The gradient of a rollout is the same within 1e-6 for every division of an optimizer step into micro-batches, padding and order."""

from __future__ import annotations

import functools

import geometry
import pytest
import torch

from llmmod.trainers.ppo.rollout import Rollout


@pytest.fixture
def rollout(toy_prompts):
    """Eight prompts of several lengths with answers of 1 to 9 tokens; the other numbers are random, and some are clipped."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 9, 3, 1, 7, 2, 5, 4])
    mask = torch.arange(9)[None] < lengths[:, None]

    def random(scale):
        return torch.where(mask, scale * torch.randn(mask.shape, generator=generator), 0.0)

    ids = torch.where(mask, torch.randint(5, 400, mask.shape, generator=generator), 0)
    prompts = [list(row["prompt_ids"])[: 2 + number] for number, row in zip(range(8), toy_prompts[0], strict=False)]
    return Rollout(prompts, ids, mask, random(0.5) - 6.0 * mask, random(0.3), random(1.0), random(1.0))


@pytest.fixture
def gradient(ppo_trainer, rollout, monkeypatch):
    """The gradient of an optimizer step of the rollout, before any weight changes."""

    def compute(division, *, left=False, **changes):
        def make(**settings):
            trainer = ppo_trainer(**settings)
            trainer.collector.collect = lambda prompts: rollout
            torch.nn.init.normal_(trainer.value_head.weight, generator=torch.Generator().manual_seed(1))  # so that values reach the trunk
            return trainer

        parts = {"num_mini_batches": 1, "num_ppo_epochs": 1, "vf_coef": 0.5, "entropy_coef": 0.1}
        with monkeypatch.context() as patch:
            patch.setattr(Rollout, "batch", functools.partialmethod(Rollout.batch, left=left))
            return geometry.step_gradient(make, **parts, **geometry.divided(*division), **changes)

    return compute


@pytest.mark.parametrize("division", geometry.DIVISIONS, ids=str)
@pytest.mark.parametrize("changes", [{}, {"left": True}, {"train_sampling_strategy": "group_by_length"}], ids=["right", "left", "sorted"])
def test_the_same_gradient(gradient, division, changes):
    assert geometry.apart(gradient(division, **changes), gradient((8, 1))) < 1e-6


def test_a_mean_of_each_micro_batch_would_be_another(gradient, monkeypatch):
    """The error that the test above must find: answers of 1 and of 9 tokens with the same weight."""
    from llmmod.trainers.ppo.trainer import PpoTrainer

    whole, right = gradient((8, 1)), PpoTrainer.compute_loss
    # Without the number of tokens of the whole step, the loss is the micro-batch's own mean.
    monkeypatch.setattr(PpoTrainer, "compute_loss", lambda self, model, inputs, **_: right(self, model, inputs) / 8)
    assert geometry.apart(gradient((1, 8)), whole) > 1e-2


def test_the_gradient_is_that_of_the_formula(gradient, rollout, tiny_llama):
    """The oracle takes each answer alone, without padding, in plain torch: the mean of policy, value and entropy terms over all tokens."""
    found = gradient((2, 4))
    head = torch.nn.Linear(32, 1)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))
    torch.nn.init.zeros_(head.bias)
    tiny_llama.zero_grad()
    total, count = torch.zeros(()), int(rollout.mask.sum())
    for row, prompt in enumerate(rollout.prompts):
        n = int(rollout.mask[row].sum())
        ids = torch.tensor([[*prompt, *rollout.completions[row, :n].tolist()]])
        output = tiny_llama(input_ids=ids, output_hidden_states=True)
        before = slice(len(prompt) - 1, len(prompt) + n - 1)
        log_p = torch.log_softmax(output.logits[0, before], -1)
        new = log_p.gather(1, ids[0, len(prompt) :, None])[:, 0]
        values, entropy = head(output.hidden_states[-1][0, before] / 32**0.5)[:, 0], -(log_p.exp() * log_p).sum(-1)
        ratio = torch.exp(new - rollout.logps[row, :n])
        gain = rollout.advantages[row, :n]
        policy = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
        old, goal = rollout.values[row, :n], rollout.returns[row, :n]
        value = 0.5 * torch.maximum((values - goal) ** 2, (old + (values - old).clamp(-0.2, 0.2) - goal) ** 2)
        total = total + (policy + 0.5 * value - 0.1 * entropy).sum()
    (total / count).backward()
    expected = {name: p.grad.double() for name, p in tiny_llama.named_parameters()}
    expected |= {f"value_head.{name}": p.grad.double() for name, p in head.named_parameters()}
    assert geometry.apart(found, expected) < 1e-6

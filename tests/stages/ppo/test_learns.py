"""PPO learns: the reward on held-out prompts rises beyond what chance explains, whatever is trained.

The reward is the share of even token ids in an answer or, with every other seed, of odd ones, about a half at first either way: a policy
that only drifts, however far, would go the right way with each of three seeds once in eight times. Rule: with each seed the reward rises by
three standard errors of a difference between two means of 384 answers. Answers are drawn independently; their tokens aren't, so that an
answer counts as one draw, whose variance is at most a quarter: 3 * sqrt(2 * 0.25 / 384) = 0.108. By what is sampled alone that happens
once in 700 times a seed, once in 10^8 with all three. Settings were chosen with seeds that aren't used here.
"""

from __future__ import annotations

import pytest
import torch
from datasets import concatenate_datasets

LEAST_RISE = 0.108
# Where less is trained.
LONGER, LONGEST = {"max_steps": 32}, {"max_steps": 40}


def share(parity):
    """The share of tokens with an even id, or an odd one."""
    return lambda answers: torch.tensor([sum(token % 2 == parity for token in ids) / len(ids) for ids in answers.answers])


@pytest.mark.parametrize(("seed", "parity"), [(11, 0), (12, 1), (13, 0)])
@pytest.mark.parametrize(("way", "changes"), [("full", {}), ("freeze", LONGER), ("lora", LONGEST), ("qlora", LONGEST)])
def test_the_reward_on_held_out_prompts_rises(ppo_trainer, prepared, toy_prompts, way, changes, seed, parity):
    settings = {
        "learning_rate": 6e-2,
        "max_steps": 12,
        "per_device_train_batch_size": 36,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 1,
        "max_completion_length": 6,
        "lam": 1.0,
        "kl_coef": 0.0,
        "logging_steps": 20.0,
        "per_device_eval_batch_size": 96,
    }
    held_out = concatenate_datasets([toy_prompts[1]] * 64)
    trainer = ppo_trainer(prepared(way), evaluation=held_out, seed=seed, scorer=share(parity), **{**settings, **changes})
    before = trainer.evaluate()["eval_score"]
    trainer.train()
    after = trainer.evaluate()
    assert 0.4 < before < 0.6
    assert after["eval_score"] > before + LEAST_RISE
    assert after["eval_kl"] > 0.5

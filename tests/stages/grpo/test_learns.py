"""GRPO learns: the reward on held-out prompts rises beyond what chance explains, whatever is trained.

The reward is the share of even token ids, about a half at first. 48 answers of 6 tokens to held-out prompts are 288 tokens, so the
standard error of a difference is at most sqrt(2 * 0.25 / 288) = 0.042. Rule: with each seed the share rises by three of them, 0.126:
one chance in 700 a seed.
"""

from __future__ import annotations

import pytest
from datasets import concatenate_datasets

# Where less is trained.
SOME, ADDED = ({"max_steps": steps, "learning_rate": 8e-2} for steps in (30, 45))
CHANGES = {"full": {}, "freeze": SOME, "lora": ADDED, "qlora": ADDED}


@pytest.mark.parametrize("way", ["full", "freeze", "lora", "qlora"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_reward_on_held_out_prompts_rises(grpo_trainer, prepared, toy_prompts, way, seed):
    settings = {
        "learning_rate": 2e-2,
        "lr_scheduler_type": "linear",
        "max_steps": 16,
        "per_device_train_batch_size": 36,
        "gradient_accumulation_steps": 1,
        "num_generations": 6,
        "max_completion_length": 6,
        "beta": 0.001,
        "logging_steps": 20.0,
        "per_device_eval_batch_size": 48,
    }
    trainer = grpo_trainer(prepared(way), evaluation=concatenate_datasets([toy_prompts[1]] * 8), seed=seed, **{**settings, **CHANGES[way]})
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    after = trainer.evaluate()
    assert 0.35 < before < 0.65
    assert after["eval_reward"] > before + 0.126
    assert after["eval_kl"] > 0.01

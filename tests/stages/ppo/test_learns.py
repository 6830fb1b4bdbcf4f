"""PPO learns, whatever is trained: more than half of the tokens of answers to held-out prompts come to be of the class that is rewarded,
one of four (an id's remainder), with each of four seeds, which reward one class each; chance does that at most once in four times a seed,
once in 256 with all four (answering.py).
"""

from __future__ import annotations

import pytest
from answering import share_of
from datasets import concatenate_datasets

# Where less is trained; adapters learn more evenly, by seed, from answers that are used once.
SOME, ADDED = {"max_steps": 32, "learning_rate": 6e-2}, {"max_steps": 30, "learning_rate": 6e-2, "num_ppo_epochs": 1}
CHANGES = {"full": {}, "freeze": SOME, "lora": ADDED, "qlora": ADDED}


@pytest.mark.parametrize("way", CHANGES)
@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_the_reward_on_held_out_prompts_rises(ppo_trainer, prepared, toy_prompts, way, seed):
    settings = {
        "learning_rate": 4e-2,
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
    held_out = concatenate_datasets([toy_prompts[1]] * 16)
    trainer = ppo_trainer(prepared(way), evaluation=held_out, seed=seed, scorer=share_of(seed % 4), **{**settings, **CHANGES[way]})
    before = trainer.evaluate()["eval_score"]
    trainer.train()
    after = trainer.evaluate()
    assert before < 0.35
    assert after["eval_score"] > 0.5
    assert after["eval_kl"] > 0.5

"""GRPO learns, whatever is trained: more than half of the tokens of answers to held-out prompts come to be of the class that is rewarded,
one of four (an id's remainder), with each of four seeds, which reward one class each; chance does that at most once in four times a seed,
once in 256 with all four (answering.py).
"""

from __future__ import annotations

import pytest
from answering import share_of
from datasets import concatenate_datasets

# Where less is trained.
SOME, ADDED = {"max_steps": 30, "learning_rate": 8e-2}, {"max_steps": 36, "learning_rate": 4e-2}
CHANGES = {"full": {}, "freeze": SOME, "lora": ADDED, "qlora": ADDED}


@pytest.mark.parametrize("way", CHANGES)
@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_the_reward_on_held_out_prompts_rises(grpo_trainer, prepared, toy_prompts, way, seed):
    settings = {
        "learning_rate": 2e-2,
        "lr_scheduler_type": "linear",
        "max_steps": 24,
        "per_device_train_batch_size": 36,
        "gradient_accumulation_steps": 1,
        "num_generations": 6,
        "max_completion_length": 6,
        "beta": 0.001,
        "logging_steps": 20.0,
        "per_device_eval_batch_size": 96,
    }
    held_out = concatenate_datasets([toy_prompts[1]] * 16)
    scorers = {"share": share_of(seed % 4)}
    trainer = grpo_trainer(prepared(way), evaluation=held_out, seed=seed, scorers=scorers, **{**settings, **CHANGES[way]})
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    after = trainer.evaluate()
    assert before < 0.35
    assert after["eval_reward"] > 0.5
    assert after["eval_kl"] > 0.5

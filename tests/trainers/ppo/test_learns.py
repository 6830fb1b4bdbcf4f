"""PPO learns with every way to fine-tune. After training, more than half of the tokens of answers to held-out prompts are of the rewarded
class, one of sixteen (an id's remainder). Each of two seeds rewards another class. By chance that happens at most once in 16 times per
seed, and once in 256 for both (answering.py).
"""

from __future__ import annotations

import learning
import pytest
from answering import share_of
from datasets import concatenate_datasets

SEEDS = (11, 12)
# For ways that train fewer weights: the seeds differ less with answers that are used once and a decreasing learning rate.
SOME = {"max_steps": 14, "learning_rate": 8e-2}
ADDED = {"max_steps": 8, "learning_rate": 2e-2, "num_ppo_epochs": 1, "lr_scheduler_type": "linear"}
CHANGES = {"full": {}, "freeze": SOME, "lora": ADDED, "qlora": ADDED}


@pytest.mark.parametrize("way", CHANGES)
def test_the_reward_on_held_out_prompts_rises(ppo_trainer, learner, toy_prompts, way, learning_seed, record_property):
    settings = {
        "learning_rate": 4e-2,
        "max_steps": 10,
        "per_device_train_batch_size": 72,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 1,
        "max_completion_length": 6,
        "lam": 1.0,
        "kl_coef": 0.0,
        "logging_steps": 20.0,
        "per_device_eval_batch_size": 96,
    }
    held_out = concatenate_datasets([toy_prompts[1]] * 16)
    places = {"evaluation": held_out, "seed": learning_seed, "scorer": share_of(learning_seed)}
    trainer = ppo_trainer(learner(way), **places, **settings | CHANGES[way])
    found = learning.assert_learns(trainer, record_property, rule=0.5, measure=lambda trainer: trainer.evaluate()["eval_score"])
    assert found[0] < 0.2
    assert trainer.state.log_history[-1]["eval_kl"] > 0.5

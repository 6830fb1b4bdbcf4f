"""DPO learns with every way to fine-tune: with each of two seeds the better answer has the higher reward in at least 70 % of held-out
pairs. By chance it is half, and 70 % once in 70 times for one seed (good_tokens.py), once in 5,000 for both.
"""

from __future__ import annotations

import good_tokens
import learning
import pytest
import torch
import ways

SEEDS = (1, 2)
# Padding is faster for pairs as short as these, and the gradient is the same (test_geometry_dpo.py).
SETTINGS = good_tokens.SETTINGS | good_tokens.SLOWER | {"beta": 0.5, "collator": {"_target_": "llmmod.data.collators.PreferenceCollator"}}


@pytest.mark.parametrize("way", ways.WAYS)
def test_better_answers_that_it_never_saw_are_preferred(dpo_trainer, tiny_llama, way, learning_seed, record_property):
    torch.manual_seed(learning_seed)
    model = ways.prepared(ways.untrained(tiny_llama.config, way), way, target_modules=ways.EMBEDDINGS)
    train, held_out = good_tokens.splits(learning_seed, train=1024 if way == "full" else 2048)  # all weights learn from half as many
    trainer = dpo_trainer(model, train=train, evaluation=held_out, seed=learning_seed, **SETTINGS)
    learning.assert_learns(trainer, record_property, rule=0.7, measure=lambda trainer: trainer.evaluate()["eval_rewards/accuracies"])

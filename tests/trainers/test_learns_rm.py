"""A reward model learns with every way to fine-tune: with each of two seeds the better answer scores higher in at least 70 % of held-out
pairs. By chance it is half, and 70 % once in 70 times for one seed (good_tokens.py), once in 5,000 for both.
"""

from __future__ import annotations

import good_tokens
import learning
import pytest
import torch
import ways
from preferences import RM_COLLATORS

SEEDS = (1, 2)
# Padding is faster for pairs as short as these, and the gradient is the same (test_geometry_rm.py).
SETTINGS = good_tokens.SETTINGS | {"collator": RM_COLLATORS[1]}


@pytest.mark.parametrize("way", ways.WAYS)
def test_better_answers_that_it_never_saw_score_higher(rm_trainer, tiny_llama, way, learning_seed, record_property):
    torch.manual_seed(learning_seed)
    model = prepared(ways.untrained(tiny_llama.config, way), way, learning_seed)
    train, held_out = good_tokens.splits(learning_seed)
    trainer = rm_trainer(model, train=train, evaluation=held_out, seed=learning_seed, **SETTINGS)
    learning.assert_learns(trainer, record_property, rule=0.7, measure=lambda trainer: trainer.evaluate()["eval_accuracy"])


def prepared(model, way, seed):
    """A reward model that is prepared for a way to fine-tune. The embeddings have adapters, too, as `ways.FREEZE` trains them."""
    from llmmod.config.schema.model import LoraConf
    from llmmod.models.adapters.setup import setup_lora
    from llmmod.models.reward import with_reward_head

    model = with_reward_head(ways.quantized(model) if way == "qlora" else model, seed=seed)
    if way in ("full", "freeze"):
        return ways.prepared(model, way)
    return setup_lora(model, LoraConf(**ways.LORA | {"target_modules": ways.EMBEDDINGS}))

"""DPO learns, whatever is trained: with each of two seeds the better answer's reward is the higher one of at least 70 % of the held-out
pairs, where chance gets half, and 70 % once in 70 times a seed (good_tokens.py), once in 5,000 with both.
"""

from __future__ import annotations

import good_tokens
import learning
import pytest
import ways
from transformers import LlamaForCausalLM

SEEDS = (1, 2)
# Pairs as short as these are quicker padded; the gradient is the same (test_geometry_dpo.py).
SETTINGS = good_tokens.SETTINGS | {"beta": 0.5, "collator": {"_target_": "llmmod.data.pairs.PadPairs"}}


@pytest.mark.parametrize("way", ways.WAYS)
def test_better_answers_that_it_never_saw_are_preferred(dpo_trainer, tiny_llama, way):
    def trainer(seed, train, held_out):
        model = ways.prepared(LlamaForCausalLM(tiny_llama.config), way, target_modules=ways.EMBEDDINGS)
        return dpo_trainer(model, train=train, evaluation=held_out, seed=seed, **SETTINGS)

    assert all(after["eval_rewards/accuracies"] >= 0.7 for _, after in learning.learnt(trainer, good_tokens.splits, SEEDS))

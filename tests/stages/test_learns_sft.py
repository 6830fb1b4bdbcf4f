"""Supervised fine-tuning learns, whatever is trained: with each of two seeds the loss of held-out questions falls, and at least half of
their twelve answers are right, which chance has once in 5,000 times a seed (partners.py), once in 10^7 with both.
"""

from __future__ import annotations

import learning
import partners
import pytest
import ways
from transformers import LlamaForCausalLM

SEEDS = (1, 2)
SETTINGS = partners.SETTINGS | {"per_device_train_batch_size": 32}


@pytest.mark.parametrize("way", ways.WAYS)
def test_questions_that_it_never_saw_are_answered(toy_trainer, tiny_llama, way):
    settings = SETTINGS | (partners.FREEZE if way == "freeze" else {})

    def trainer(seed, train, held_out):
        model = ways.prepared(LlamaForCausalLM(tiny_llama.config), way, target_modules=ways.EMBEDDINGS)
        return toy_trainer(model, train=train, evaluation=held_out, seed=seed, **settings)

    found = learning.learnt(trainer, partners.questions, SEEDS)
    assert all(after["eval_loss"] < before["eval_loss"] for before, after in found)
    assert all(after["eval_token_accuracy"] >= 0.5 for _, after in found)

"""Pre-training and supervised fine-tuning learn, whatever is trained: with each of two seeds the loss of what is held out falls, and at
least half of its twelve partners are right, which chance has once in 5,000 times a seed (partners.py), once in 10^7 with both.
"""

from __future__ import annotations

import learning
import partners
import pytest
import torch
import ways
from transformers import LlamaForCausalLM

SEEDS = (1, 2)
STAGES = {
    "pt": (partners.documents, {"num_train_epochs": 3.0, "per_device_train_batch_size": 16}),
    "sft": (partners.questions, {"per_device_train_batch_size": 32}),
}


@pytest.mark.parametrize("way", ways.WAYS)
@pytest.mark.parametrize("stage", STAGES)
def test_what_it_never_saw_is_foretold(toy_trainer, tiny_llama, stage, way, learning_seed, record_property):
    examples, own = STAGES[stage]
    settings = partners.SETTINGS | own | (partners.FREEZE if way == "freeze" else {})

    torch.manual_seed(learning_seed)
    model = ways.prepared(LlamaForCausalLM(tiny_llama.config), way, target_modules=ways.EMBEDDINGS)
    train, held_out = examples(learning_seed)
    trainer = toy_trainer(model, train=train, evaluation=held_out, seed=learning_seed, **settings)
    before = trainer.evaluate()["eval_loss"]
    learning.assert_learns(trainer, record_property, rule=0.5, measure=lambda trainer: trainer.evaluate()["eval_token_accuracy"])
    assert trainer.evaluate()["eval_loss"] < before

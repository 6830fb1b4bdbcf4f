"""Pre-training and supervised fine-tuning learn with every way to fine-tune. With each of two seeds the loss on held-out examples falls,
and at least half of the twelve partners are right. By chance that happens once in 5,000 times for one seed (partners.py), in 10^7 for both.
"""

from __future__ import annotations

import learning
import partners
import pytest
import torch
import ways

SEEDS = (1, 2)
# Stage -> its texts, its settings, and the changes if only some layers are trained.
STAGES = {
    "pt": (
        partners.documents, {"num_train_epochs": 2.0, "per_device_train_batch_size": 16, "learning_rate": 1.5e-2},
        {"num_train_epochs": 3.0, "learning_rate": 2e-2},
    ),
    "sft": (
        partners.questions, {"per_device_train_batch_size": 32},
        {"num_train_epochs": 3.0, "per_device_train_batch_size": 64, "learning_rate": 3e-2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", ways.WAYS)
@pytest.mark.parametrize("stage", STAGES)
def test_it_predicts_held_out_partners(toy_trainer, tiny_llama, stage, way, learning_seed, record_property):
    examples, own, frozen = STAGES[stage]
    settings = partners.SETTINGS | own | (frozen if way == "freeze" else {})

    torch.manual_seed(learning_seed)
    model = ways.prepared(ways.untrained(tiny_llama.config, way), way, target_modules=ways.EMBEDDINGS)
    train, held_out = examples(learning_seed)
    trainer = toy_trainer(model, train=train, evaluation=held_out, seed=learning_seed, **settings)
    losses = []

    def measure(trainer):
        metrics = trainer.evaluate()
        losses.append(metrics["eval_loss"])
        return metrics["eval_token_accuracy"]

    learning.assert_learns(trainer, record_property, rule=0.5, measure=measure)
    assert losses[1] < losses[0]

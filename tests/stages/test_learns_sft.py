"""Supervised fine-tuning learns, whatever is trained: with each of two seeds, the loss of answers to questions in a wording that training
never shows falls by at least a third.

Guessing can't do that: the tiny model is random, and a step in a random direction leaves the loss where it was. It is the answers'
ends, which are all alike, and the sounds that are learnt.
"""

from __future__ import annotations

import copy

import pytest
import torch
from ways import WAYS, prepared


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_of_held_out_answers_falls(toy_trainer, tiny_llama, way):
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = prepared(copy.deepcopy(tiny_llama), way)
        trainer = toy_trainer(model, num_train_epochs=8.0, seed=seed, eval_strategy="no", eval_on_start=False)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
        assert after < before * 2 / 3

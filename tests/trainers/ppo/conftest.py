"""A trainer for the prompts of tests/support; its reward is the share of even token ids."""

from __future__ import annotations

import pytest
from answering import SHORT, answering_trainer, even, learner, prepared, scored_texts, toy_prompts, with_dropout

__all__ = ["answering_trainer", "even", "learner", "prepared", "scored_texts", "toy_prompts", "with_dropout"]


@pytest.fixture
def ppo_conf():
    """`training.*` of stage ppo, with changes by keyword."""
    from llmmod.config.schema.training import PpoConf

    def make(**changes):
        fields = {
            "stage": "ppo",
            "trainer": {"_target_": "llmmod.trainers.ppo.trainer.PpoTrainer"},
            "max_steps": 8,
            "num_mini_batches": 2,
            "num_ppo_epochs": 2,
            "kl_coef": 0.01,
            "include_num_input_tokens_seen": "non_padding",
        }
        return PpoConf(**{**SHORT, **fields, **changes})

    return make


@pytest.fixture
def ppo_trainer(answering_trainer, ppo_conf):
    """`answering_trainer` of stage ppo, with another scorer, and with changes of `training.*` by keyword."""
    from llmmod.trainers.online.rewards import Rewards

    def make(model=None, train=None, evaluation=None, callbacks=(), scorer=even, **changes):
        places = {name: changes.pop(name) for name in ("output_dir", "seed") if name in changes}
        trainer = answering_trainer(ppo_conf(**changes), model=model, train=train, evaluation=evaluation, callbacks=callbacks, **places)
        if scorer is not None:
            trainer.rewards = Rewards({"even": scorer})
        return trainer

    return make

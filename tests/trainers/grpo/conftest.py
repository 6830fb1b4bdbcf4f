"""A trainer for the prompts of tests/support; its reward is the share of even token ids."""

from __future__ import annotations

import pytest
from answering import SHORT, answering_trainer, even, learner, prepared, scored_texts, toy_prompts, with_dropout

__all__ = ["answering_trainer", "even", "learner", "prepared", "scored_texts", "toy_prompts", "with_dropout"]


@pytest.fixture
def grpo_conf():
    """`training.*` of stage grpo, with changes by keyword."""
    from llmmod.config.schema.training import GrpoConf

    def make(**changes):
        fields = {
            "stage": "grpo",
            "trainer": {"_target_": "llmmod.trainers.online.grpo.GrpoTrainer"},
            "max_steps": 4,
            "num_generations": 4,
            "num_generations_eval": 1,
            "disable_dropout": True,
        }
        return GrpoConf(**{**SHORT, **fields, **changes})

    return make


@pytest.fixture
def grpo_trainer(answering_trainer, grpo_conf):
    """`answering_trainer` of stage grpo, with other scorers, and with changes of `training.*` by keyword."""

    def make(model=None, train=None, evaluation=None, callbacks=(), scorers=None, **changes):
        scorers = {"even": even} if scorers is None else scorers
        places = {name: changes.pop(name) for name in ("output_dir", "seed") if name in changes}
        conf = grpo_conf(reward={name: {"_target_": "llmmod.rewards.brevity"} for name in scorers}, **changes)
        trainer = answering_trainer(conf, model=model, train=train, evaluation=evaluation, callbacks=callbacks, **places)
        trainer.rewards.scorers = dict(scorers)
        return trainer

    return make

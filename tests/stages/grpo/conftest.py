"""A trainer for the prompts of tests/support whose reward is the share of even token ids."""

from __future__ import annotations

import pytest
from answering import answering_trainer, even, prepared, toy_prompts, with_dropout

__all__ = ["answering_trainer", "even", "prepared", "toy_prompts", "with_dropout"]


@pytest.fixture
def grpo_conf():
    """`training.*` of stage grpo, with changes by keyword."""
    from llmmod.schema.training.grpo import GrpoConf

    def make(**changes):
        fields = {
            "stage": "grpo",
            "trainer": {"_target_": "llmmod.stages.grpo.trainer.GrpoTrainer"},
            "learning_rate": 5e-3,
            "max_steps": 4,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 6,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "num_generations_eval": 1,
            "max_completion_length": 8,
            "disable_dropout": True,
            "logging_steps": 1.0,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_nan_inf_filter": False,
            "gradient_checkpointing": False,
            "report_to": "none",
        }
        return GrpoConf(**{**fields, **changes})

    return make


@pytest.fixture
def grpo_trainer(answering_trainer, grpo_conf):
    """`answering_trainer` of stage grpo, with other scorers, and with changes of `training.*` by keyword."""

    def make(model=None, train=None, evaluation=None, callbacks=(), scorers=None, **changes):
        scorers = {"even": even} if scorers is None else scorers
        places = {name: changes.pop(name) for name in ("output_dir", "seed") if name in changes}
        conf = grpo_conf(reward={name: {"_target_": "llmmod.rewards.brevity.brevity"} for name in scorers}, **changes)
        trainer = answering_trainer(conf, model=model, train=train, evaluation=evaluation, callbacks=callbacks, **places)
        trainer.rewards.scorers = dict(scorers)
        return trainer

    return make

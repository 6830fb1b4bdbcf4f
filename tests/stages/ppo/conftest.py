"""A trainer for the prompts of tests/support whose reward is the share of even token ids."""

from __future__ import annotations

import pytest
from answering import answering_trainer, even, prepared, toy_prompts, with_dropout

__all__ = ["answering_trainer", "even", "prepared", "toy_prompts", "with_dropout"]


@pytest.fixture
def ppo_conf():
    """`training.*` of stage ppo, with changes by keyword."""
    from llmmod.schema.training.ppo import PpoConf

    def make(**changes):
        fields = {
            "stage": "ppo",
            "trainer": {"_target_": "llmmod.stages.ppo.trainer.PpoTrainer"},
            "learning_rate": 5e-3,
            "max_steps": 8,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 6,
            "gradient_accumulation_steps": 2,
            "num_mini_batches": 2,
            "num_ppo_epochs": 2,
            "max_completion_length": 8,
            "kl_coef": 0.01,
            "logging_steps": 1.0,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_nan_inf_filter": False,
            "gradient_checkpointing": False,
            "include_num_input_tokens_seen": "non_padding",
            "report_to": "none",
        }
        return PpoConf(**{**fields, **changes})

    return make


@pytest.fixture
def ppo_trainer(answering_trainer, ppo_conf):
    """`answering_trainer` of stage ppo, with another scorer, and with changes of `training.*` by keyword."""
    from llmmod.stages.rewards import Rewards

    def make(model=None, train=None, evaluation=None, callbacks=(), scorer=even, **changes):
        places = {name: changes.pop(name) for name in ("output_dir", "seed") if name in changes}
        trainer = answering_trainer(ppo_conf(**changes), model=model, train=train, evaluation=evaluation, callbacks=callbacks, **places)
        if scorer is not None:
            trainer.rewards = Rewards({"even": scorer})
        return trainer

    return make

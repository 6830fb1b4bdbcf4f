"""A trainer for the prompts of tests/support whose reward is the share of even token ids."""

from __future__ import annotations

import pytest
from answering import even, prepared, toy_prompts, with_dropout

__all__ = ["even", "prepared", "toy_prompts", "with_dropout"]


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
def ppo_trainer(tiny_llama, tiny_tokenizer, toy_prompts, ppo_conf, tmp_path):
    """A trainer for the toy's prompts, not started: what `training.*` makes of the changes, and parts by keyword."""
    from llmmod.stages.arguments import training_arguments
    from llmmod.stages.build import trainer_from
    from llmmod.stages.rewards import Rewards

    def make(model=None, train=None, evaluation=None, callbacks=(), scorer=even, output_dir=tmp_path / "train", seed=1, **changes):
        conf = ppo_conf(**changes)
        trainer = trainer_from(
            conf,
            model=tiny_llama if model is None else model,
            args=training_arguments(conf, output_dir=output_dir, seed=seed, smoke=False),
            train=toy_prompts[0] if train is None else train,
            evaluation=toy_prompts[1] if evaluation is None else evaluation,
            tokenizer=tiny_tokenizer,
            callbacks=callbacks,
        )
        if scorer is not None:
            trainer.rewards = Rewards({"even": scorer})
        return trainer

    return make

"""A trainer for the prompts of tests/support whose reward is the share of even token ids."""

from __future__ import annotations

import pytest
from answering import even, prepared, toy_prompts, with_dropout

__all__ = ["even", "prepared", "toy_prompts", "with_dropout"]


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
def grpo_trainer(tiny_llama, tiny_tokenizer, toy_prompts, grpo_conf, tmp_path):
    """A trainer for the toy's prompts, not started: what `training.*` makes of the changes, and parts by keyword."""
    from llmmod.stages.arguments import training_arguments
    from llmmod.stages.build import trainer_from

    def make(model=None, train=None, evaluation=None, callbacks=(), scorers=None, output_dir=tmp_path / "train", seed=1, **changes):
        scorers = {"even": even} if scorers is None else scorers
        conf = grpo_conf(reward={name: {"_target_": "llmmod.rewards.brevity.brevity"} for name in scorers}, **changes)
        trainer = trainer_from(
            conf,
            model=tiny_llama if model is None else model,
            args=training_arguments(conf, output_dir=output_dir, seed=seed, smoke=False),
            train=toy_prompts[0] if train is None else train,
            evaluation=toy_prompts[1] if evaluation is None else evaluation,
            tokenizer=tiny_tokenizer,
            callbacks=callbacks,
        )
        trainer.rewards.scorers = dict(scorers)
        return trainer

    return make

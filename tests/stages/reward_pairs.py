"""The toy preferences of pairs.py for reward models. Fixtures, loaded by path."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("pairs", Path(__file__).parent / "pairs.py")
pairs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pairs)
toy_pairs = pairs.toy_pairs

COLLATORS = [{"_target_": f"llmmod.data.scored_pairs.{name}"} for name in ("SharePromptScored", "PadPairsScored")]


@pytest.fixture
def rm_conf():
    """`training.*` for the toy task, with changes by keyword."""
    from llmmod.schema.training.rm import RmConf

    def make(**changes):
        fields = {
            "stage": "rm",
            "trainer": {"_target_": "llmmod.stages.rm.RmTrainer"},
            "collator": COLLATORS[0],
            "learning_rate": 1e-2,
            "num_train_epochs": 2.0,
            "per_device_train_batch_size": 4,
            "logging_steps": 1.0,
            "eval_strategy": "epoch",
            "eval_on_start": True,
            "save_strategy": "no",
            "logging_nan_inf_filter": False,
            "gradient_checkpointing": False,
            "include_num_input_tokens_seen": "non_padding",
            "report_to": "none",
        }
        return RmConf(**{**fields, **changes})

    return make


@pytest.fixture
def tiny_reward(tiny_llama):
    """The Llama with a reward head."""
    from llmmod.models.reward import with_reward_head

    return with_reward_head(tiny_llama, seed=3)


@pytest.fixture
def rm_trainer(tiny_reward, tiny_tokenizer, toy_pairs, rm_conf, tmp_path):
    """A trainer for the toy task, not started: what `training.*` makes of the changes, and parts by keyword."""
    from llmmod.stages.arguments import training_arguments
    from llmmod.stages.build import trainer_from

    def make(model=None, train=None, evaluation=None, callbacks=(), output_dir=tmp_path, **changes):
        conf = rm_conf(**changes)
        return trainer_from(
            conf,
            model=tiny_reward if model is None else model,
            args=training_arguments(conf, output_dir=output_dir, seed=1, smoke=False),
            train=toy_pairs.train if train is None else train,
            evaluation=toy_pairs.eval if evaluation is None else evaluation,
            tokenizer=tiny_tokenizer,
            callbacks=callbacks,
        )

    return make

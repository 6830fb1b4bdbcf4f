"""The toy task of tests/support/toy.py asked as prompts, and a trainer for it whose reward is the share of even token ids."""

from __future__ import annotations

import pytest
import toy


@pytest.fixture(scope="session")
def toy_prompts(tiny_tokenizer):
    """18 prompts to train on and 6 held out, with the columns that prompts have."""
    from datasets import Dataset

    def prompt(way, animal, sound):
        text = way.format(animal)
        ids = tiny_tokenizer(text + "\n", add_special_tokens=False)["input_ids"]
        return {"prompt_ids": ids, "prompt": [{"role": "user", "content": text}], "answer": sound}

    train = [prompt(way, *pair) for way in toy.WAYS[:3] for pair in toy.SOUNDS.items()]
    held_out = [prompt(toy.WAYS[3], *pair) for pair in toy.SOUNDS.items()]
    return Dataset.from_list(train), Dataset.from_list(held_out)


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


def even(answers):
    """The share of tokens with an even id."""
    import torch

    return torch.tensor([sum(token % 2 == 0 for token in ids) / len(ids) for ids in answers.answers])


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

"""The toy task of tests/toy.py as preferences: an animal's own sound is preferred to another's. Fixtures, loaded by path."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


@pytest.fixture(scope="session")
def toy_pairs(tiny_tokenizer):
    """36 pairs to train on, two an animal and a way to ask; 30 held out, each animal asked in the fourth way about each other's sound."""
    from datasets import Dataset

    def ids(text):
        return tiny_tokenizer(text, add_special_tokens=False)["input_ids"]

    def pair(way, animal, wrong):
        said = [[*ids(sound), tiny_tokenizer.eos_token_id] for sound in (toy.SOUNDS[animal], wrong)]
        return {"prompt_ids": ids(way.format(animal) + "\n"), "chosen_ids": said[0], "rejected_ids": said[1]}

    def wrong(animal):
        return [sound for other, sound in toy.SOUNDS.items() if other != animal]

    train = [
        pair(way, animal, wrong(animal)[(number + more) % 5])
        for number, way in enumerate(toy.WAYS[:3])
        for animal in toy.SOUNDS
        for more in (0, 2)
    ]
    held_out = [pair(toy.WAYS[3], animal, sound) for animal in toy.SOUNDS for sound in wrong(animal)]
    return SimpleNamespace(train=Dataset.from_list(train), eval=Dataset.from_list(held_out))


@pytest.fixture
def dpo_conf():
    """`training.*` for the toy task, with changes by keyword."""
    from llmmod.schema.training.dpo import DpoConf

    def make(**changes):
        fields = {
            "stage": "dpo",
            "trainer": {"_target_": "llmmod.stages.dpo.DpoTrainer"},
            "collator": {"_target_": "llmmod.data.pairs.SharePrompt"},
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
        return DpoConf(**{**fields, **changes})

    return make


@pytest.fixture
def dpo_trainer(tiny_llama, tiny_tokenizer, toy_pairs, dpo_conf, tmp_path):
    """A trainer for the toy task, not started: what `training.*` makes of the changes, and parts by keyword."""
    from llmmod.stages.arguments import training_arguments
    from llmmod.stages.build import trainer_from

    def make(model=None, train=None, evaluation=None, callbacks=(), output_dir=tmp_path, **changes):
        conf = dpo_conf(**changes)
        return trainer_from(
            conf,
            model=tiny_llama if model is None else model,
            args=training_arguments(conf, output_dir=output_dir, seed=1, smoke=False),
            train=toy_pairs.train if train is None else train,
            evaluation=toy_pairs.eval if evaluation is None else evaluation,
            tokenizer=tiny_tokenizer,
            callbacks=callbacks,
        )

    return make

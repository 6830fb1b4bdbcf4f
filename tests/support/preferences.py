"""The toy task of toy.py as preferences, for dpo, kto and rm: an animal's own sound is preferred to another's. Fixtures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import toy

RM_COLLATORS = [{"_target_": f"llmmod.data.collators.{name}"} for name in ("PrefixSharingRewardCollator", "RewardCollator")]


@pytest.fixture(scope="session")
def toy_pairs(tiny_tokenizer):
    """36 training pairs, two for each animal and form of question; 30 held-out ones, with a fourth form of question for each animal."""
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
    """`training.*` of dpo."""
    from llmmod.config.schema.training import DpoConf

    trainer = {"_target_": "llmmod.trainers.preference.trainers.DpoTrainer"}
    parts = {"trainer": trainer, "collator": {"_target_": "llmmod.data.collators.PrefixSharingCollator"}}
    return toy.conf_maker(DpoConf, stage="dpo", **parts)


@pytest.fixture
def dpo_trainer(tiny_llama, tiny_tokenizer, toy_pairs, dpo_conf, tmp_path):
    """Trainers of dpo."""
    return toy.trainer_maker(dpo_conf, model=tiny_llama, splits=toy_pairs, tokenizer=tiny_tokenizer, output_dir=tmp_path)


def judged(pairs):
    """Each answer of the pairs, with its label."""
    from datasets import Dataset

    rows = [(pair["prompt_ids"], pair[name], name == "chosen_ids") for pair in pairs for name in ("chosen_ids", "rejected_ids")]
    return Dataset.from_list([dict(zip(("prompt_ids", "completion_ids", "label"), row, strict=True)) for row in rows])


@pytest.fixture(scope="session")
def toy_judged(toy_pairs):
    """The same answers with their labels: 72 for training, 60 held out."""
    return SimpleNamespace(train=judged(toy_pairs.train), eval=judged(toy_pairs.eval))


@pytest.fixture
def kto_conf():
    """`training.*` of kto."""
    from llmmod.config.schema.training import KtoConf

    trainer = {"_target_": "llmmod.trainers.preference.trainers.KtoTrainer"}
    parts = {"trainer": trainer, "collator": {"_target_": "llmmod.data.collators.KTOCollator"}}
    return toy.conf_maker(KtoConf, stage="kto", train_sampling_strategy="random", **parts)


@pytest.fixture
def kto_trainer(tiny_llama, tiny_tokenizer, toy_judged, kto_conf, tmp_path):
    """Trainers of kto."""
    return toy.trainer_maker(kto_conf, model=tiny_llama, splits=toy_judged, tokenizer=tiny_tokenizer, output_dir=tmp_path)


@pytest.fixture
def rm_conf():
    """`training.*` of rm."""
    from llmmod.config.schema.training import RmConf

    return toy.conf_maker(RmConf, stage="rm", trainer={"_target_": "llmmod.trainers.rm.RmTrainer"}, collator=RM_COLLATORS[0])


@pytest.fixture
def tiny_reward(tiny_llama):
    """The Llama with a reward head."""
    from llmmod.models.reward import with_reward_head

    return with_reward_head(tiny_llama, seed=3)


@pytest.fixture
def rm_trainer(tiny_reward, tiny_tokenizer, toy_pairs, rm_conf, tmp_path):
    """Trainers of rm."""
    return toy.trainer_maker(rm_conf, model=tiny_reward, splits=toy_pairs, tokenizer=tiny_tokenizer, output_dir=tmp_path)

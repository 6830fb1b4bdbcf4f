"""Trained 16-bit weights change like the same weights in float32, at a learning rate at which 16 bits would lose the change."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from answering import SHORT, answering_trainer, even, toy_prompts

from llmmod.config.schema.base import TrainableDtype
from llmmod.config.schema.model import FreezeConf, FullConf, LoraConf
from llmmod.config.schema.training import PpoConf
from llmmod.models.adapters.setup import setup_freeze, setup_full, setup_lora
from llmmod.models.reward import with_reward_head
from llmmod.trainers.online.rewards import Rewards
from llmmod.trainers.ppo import rollout

__all__ = ["answering_trainer", "toy_prompts"]

SETTINGS = {"learning_rate": 2e-5, "lr_scheduler_type": "constant", "max_steps": 4, "eval_strategy": "no", "eval_on_start": False}
PPO = {
    "stage": "ppo",
    "trainer": {"_target_": "llmmod.trainers.ppo.trainer.PpoTrainer"},
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "kl_coef": 0.01,
}
WAYS = ("full", "freeze", "lora")


def prepared(model, way, stage, trainable_dtype=TrainableDtype.float32):
    """The model prepared for a way to fine-tune. LoRA also trains a whole module, and a reward model always trains its head."""
    model = with_reward_head(model, seed=3) if stage == "rm" else model
    given = {"name": way, "trainable_dtype": trainable_dtype}
    if way == "full":
        return setup_full(model, FullConf(**given))
    if way == "freeze":
        return setup_freeze(model, FreezeConf(**given, num_layers_trainable=1, extra_trainable=["norm", "embed_tokens"]))
    torch.manual_seed(0)
    whole = ["norm"] if stage == "rm" else ["lm_head"]
    return setup_lora(model, LoraConf(**given, task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], modules_to_save=whole))


@dataclass
class Change:
    """The changes of a model (without adapters' own matrices) and of ppo's value head, each as one vector, and ppo's completions."""

    weights: torch.Tensor
    head: torch.Tensor
    drawn: list[list[list[int]]]


@pytest.fixture
def change(toy_trainer, dpo_trainer, rm_trainer, answering_trainer, monkeypatch):
    """A function that trains a model.

    Given another model's completions, it uses these: one token sampled otherwise would change all later ones.
    """
    draw = rollout.generate_in_order

    def ppo(model, **changes):
        trainer = answering_trainer(PpoConf(**{**SHORT, **PPO, **changes}), model=model)
        trainer.rewards = Rewards({"even": even})
        return trainer

    make = {"sft": toy_trainer, "dpo": dpo_trainer, "rm": rm_trainer, "ppo": ppo}

    def trained(model, stage, like=None):
        drawn = []

        def answers(*args, **given):
            drawn.append(draw(*args, **given) if like is None else like.drawn[len(drawn)])
            return drawn[-1]

        monkeypatch.setattr(rollout, "generate_in_order", answers)
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
        first = {name: p.detach().clone() for name, p in weights.items()}
        trainer = make[stage](model=model, **SETTINGS)
        trainer.train()
        changes = [(p.detach().float() - first[name].float()).flatten() for name, p in weights.items()]
        head = trainer.value_head.weight.detach().flatten() if stage == "ppo" else torch.zeros(0)
        return Change(torch.cat(changes), head, drawn)

    return trained


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ["sft", "dpo", "rm", "ppo"])
def test_it_changes_as_in_float32(tiny_llama, change, stage, way):
    """The norms of the changes agree within 5 %, and their directions agree. Measured: within 0.4 %, cosines above 0.99."""
    for dtype in (torch.bfloat16, torch.float16):
        rounded = tiny_llama.to(dtype)
        expected = change(prepared(copy.deepcopy(rounded).float(), way, stage), stage)
        found = change(prepared(copy.deepcopy(rounded), way, stage), stage, like=expected)
        for name in ("weights", "head"):
            mine, theirs = getattr(found, name), getattr(expected, name)
            assert float(mine.norm()) == pytest.approx(float(theirs.norm()), rel=0.05), (dtype, name)
            assert not theirs.any() or torch.cosine_similarity(mine, theirs, dim=0) > 0.9, (dtype, name)


@pytest.mark.parametrize("way", WAYS)
def test_it_does_not_as_the_checkpoint_has_it(tiny_llama, change, way):
    """The opposite case: in bfloat16 most weights don't change, and the others jump."""
    rounded = tiny_llama.to(torch.bfloat16)
    found = change(prepared(copy.deepcopy(rounded), way, "sft", TrainableDtype.checkpoint), "sft")
    expected = change(prepared(copy.deepcopy(rounded).float(), way, "sft"), "sft")
    assert (found.weights != 0).float().mean() < 0.5 * (expected.weights != 0).float().mean()

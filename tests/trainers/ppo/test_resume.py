"""A resumed run gives the same bits as an uninterrupted one: in the middle of a rollout and at its end, for every way to fine-tune."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from answering import StopAt, logged

from llmmod.trainers.ppo.trainer import VALUE_HEAD


def weights(trainer):
    state = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    return state | {f"{VALUE_HEAD}.{name}": tensor.clone() for name, tensor in trainer.value_head.state_dict().items()}


@pytest.mark.parametrize(("way", "step"), [("full", 7), ("freeze", 6), ("lora", 4), ("lora", 7)])
def test_the_same_bits(ppo_trainer, with_dropout, tmp_path, way, step):
    """10 steps, 4 per rollout: a checkpoint before a new rollout, in its second pass, and before its last step.

    LoRA uses dropout, so that the training's own random numbers matter, too.
    """
    settings = {
        "max_steps": 10,
        "save_strategy": "steps",
        "save_steps": step,
        "logging_steps": 3.0,
        "lr_scheduler_type": "cosine",
        "use_score_scaling": True,
        "use_score_norm": True,
        "target": 0.5,
        "horizon": 50.0,
        "missing_eos_penalty": 0.1,
        "target_kl": 0.5,
        "entropy_coef": 0.01,
        "disable_dropout": False,
        "eval_strategy": "steps",
        "eval_steps": 5,
    }

    whole = ppo_trainer(model=with_dropout(way), output_dir=tmp_path / "whole", **settings)
    whole.train()
    expected, history, samples = weights(whole), logged(whole), (tmp_path / "whole" / "samples.jsonl").read_text()

    first = ppo_trainer(model=with_dropout(way), output_dir=tmp_path / "parts", callbacks=[StopAt(step)], **settings)
    first.train()
    again = ppo_trainer(model=with_dropout(way), output_dir=tmp_path / "parts", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{step}"))
    assert again.state.global_step == 10
    found = weights(again)
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    assert logged(again) == history
    assert (tmp_path / "parts" / "samples.jsonl").read_text() == samples
    assert again.collector.kl_coef.value == whole.collector.kl_coef.value != 0.01
    assert again.collector.scale.moments == whole.collector.scale.moments


def test_a_checkpoint_holds_policy_and_value_head_apart(ppo_trainer, tmp_path):
    trainer = ppo_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    directory = tmp_path / "train" / "checkpoint-1"
    names = {path.name for path in directory.iterdir()}
    assert {"model.safetensors", "value_head.safetensors", "training_state_0.pt", "optimizer.pt", "trainer_state.json"} <= names
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if VALUE_HEAD in name]  # noqa: SIM118 - not a dict
    assert not hasattr(trainer.model, VALUE_HEAD)
    assert json.loads(Path(directory, "trainer_state.json").read_text())["global_step"] == 1

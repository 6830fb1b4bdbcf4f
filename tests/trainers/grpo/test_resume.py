"""A resumed run gives the same bits as an uninterrupted one: between two generations and within one, for every way to fine-tune."""

from __future__ import annotations

import pytest
import torch
from answering import StopAt, logged


@pytest.mark.parametrize(("way", "step"), [("full", 4), ("freeze", 3), ("lora", 2), ("lora", 5)])
def test_the_same_bits(grpo_trainer, with_dropout, toy_prompts, tmp_path, way, step):
    """6 steps, 4 per generation and epoch: a checkpoint before a new generation, in its second pass and in its first, and in the next one.

    LoRA uses dropout, so that the training's own random numbers matter, too.
    """
    settings = {
        "train": toy_prompts[0].select(range(6)),  # a generation takes 8
        "max_steps": 6,
        "num_iterations": 2,
        "steps_per_generation": 4,
        "per_device_train_batch_size": 8,
        "beta": 0.05,
        "save_strategy": "steps",
        "save_steps": step,
        "logging_steps": 3.0,
        "lr_scheduler_type": "cosine",
        "disable_dropout": False,
        "use_adaptive_entropy": True,
        "entropy_target": 5.0,
        "entropy_coef": 0.01,
        "eval_strategy": "steps",
        "eval_steps": 3,
    }
    whole = grpo_trainer(model=with_dropout(way), output_dir=tmp_path / "whole", **settings)
    whole.train()
    expected, history = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}, logged(whole)
    first = grpo_trainer(model=with_dropout(way), output_dir=tmp_path / "parts", callbacks=[StopAt(step)], **settings)
    first.train()
    again = grpo_trainer(model=with_dropout(way), output_dir=tmp_path / "parts", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{step}"))
    assert again.state.global_step == 6
    assert whole.state.epoch > 1
    found = again.model.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    assert logged(again) == history
    samples = [(tmp_path / part / "samples.jsonl").read_text() for part in ("whole", "parts")]
    assert samples[0] == samples[1]
    assert again.entropy_coef == whole.entropy_coef != 0.01

"""PPO learns: the reward on held-out prompts rises beyond what chance explains, whatever is trained.

The reward is the share of even token ids, about a half at first. 48 answers of 6 tokens to held-out prompts are 288 tokens, so the
standard error of a difference is at most sqrt(2 * 0.25 / 288) = 0.042. Rule: with each seed the share rises by three of them, 0.126:
one chance in 700 a seed.
"""

from __future__ import annotations

import pytest
import torch
from datasets import concatenate_datasets

LONGER = {"max_steps": 80}  # where less is trained


@pytest.fixture
def prepared(tiny_llama, tmp_path):
    """The tiny model as each way to fine-tune leaves it to a trainer."""
    from llmmod.models.adapt import add_lora, train_all, train_some_layers
    from llmmod.schema.finetune import FreezeConf, FullConf, LoraConf

    def make(way):
        torch.manual_seed(0)
        if way == "full":
            return train_all(tiny_llama, FullConf(name=way))
        if way == "freeze":
            return train_some_layers(tiny_llama, FreezeConf(name=way, num_layers_trainable=1, extra_trainable=["norm"]))
        model = tiny_llama if way == "lora" else quantized(tiny_llama, tmp_path / "model")
        return add_lora(model, LoraConf(name=way, task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"))

    return make


def quantized(model, directory):
    from llmmod.models.load import load_model
    from llmmod.models.quantize import quantization_config
    from llmmod.schema.quantization import QuantizationConf

    model.save_pretrained(directory)
    return load_model(str(directory), quantization_config=quantization_config(QuantizationConf(bits=4)))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("way", "changes"), [("full", {}), ("freeze", LONGER), ("lora", LONGER), ("qlora", LONGER)])
def test_the_reward_on_held_out_prompts_rises(ppo_trainer, prepared, toy_prompts, way, changes, seed):
    settings = {
        "learning_rate": 2e-2,
        "lr_scheduler_type": "linear",
        "max_steps": 40,
        "per_device_train_batch_size": 36,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 6,
        "kl_coef": 0.0,
        "logging_steps": 20.0,
        "per_device_eval_batch_size": 48,
    }
    trainer = ppo_trainer(prepared(way), evaluation=concatenate_datasets([toy_prompts[1]] * 8), seed=seed, **{**settings, **changes})
    before = trainer.evaluate()["eval_score"]
    trainer.train()
    after = trainer.evaluate()
    assert 0.35 < before < 0.65
    assert after["eval_score"] > before + 0.126
    assert after["eval_kl"] > 0.5

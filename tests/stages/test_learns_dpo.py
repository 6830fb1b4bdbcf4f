"""DPO learns: what an animal says is preferred in a wording that training never shows, beyond what chance explains, whatever is trained.

An animal is right where its own sound's margin over the five others is above 0 in the mean; by chance that is so for one of two. Rule: of
six animals with three seeds, 18 in all, at least 15 are right, which chance does once in 260 times, and the loss falls with each seed.
"""

from __future__ import annotations

import copy

import pytest
import torch

from llmmod.models.adapt import add_lora, train_all, train_some_layers
from llmmod.models.load import load_model
from llmmod.models.quantize import quantization_config
from llmmod.schema.finetune import FreezeConf, FullConf, LoraConf
from llmmod.schema.quantization import QuantizationConf

ANIMALS, OTHERS = 6, 5


def prepared(model, way, directory):
    """The tiny model as each way to fine-tune leaves it to a trainer."""
    if way == "full":
        return train_all(model, FullConf(name=way))
    if way == "freeze":
        return train_some_layers(model, FreezeConf(name=way, num_layers_trainable=1, extra_trainable=["embed_tokens", "norm"]))
    if way == "qlora":
        model.save_pretrained(directory)
        model = load_model(str(directory), quantization_config=quantization_config(QuantizationConf(bits=4)))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"]
    return add_lora(model, LoraConf(name=way, task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=targets))


def margins(trainer):
    """Of each animal, its own sound's margin over the others in the mean."""
    held_out = [trainer.eval_dataset.select(range(OTHERS * n, OTHERS * (n + 1))) for n in range(ANIMALS)]
    return [trainer.evaluate(part)["eval_rewards/margins"] for part in held_out]


@pytest.mark.parametrize(("way", "rate", "epochs"), [("full", 1e-2, 4.0), ("freeze", 1e-2, 4.0), ("lora", 1e-2, 4.0), ("qlora", 1e-2, 4.0)])
def test_own_sounds_are_preferred_where_they_were_never_asked_for_so(dpo_trainer, tiny_llama, tmp_path, way, rate, epochs):
    right = 0
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        model = prepared(copy.deepcopy(tiny_llama), way, tmp_path / "model")
        trainer = dpo_trainer(model, learning_rate=rate, num_train_epochs=epochs, seed=seed, beta=0.5, eval_strategy="no")
        trainer.train()
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert sum(logged[-5:]) < 0.5 * sum(logged[:5])
        right += sum(margin > 0 for margin in margins(trainer))
    assert right >= 15

"""Pre-training learns, whatever is trained: with each of two seeds, the loss on held-out documents falls by at least a tenth.

Guessing can't do that: the tiny model is random, and a step in a random direction leaves the loss where it was.
"""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset

from llmmod.models.adapt import add_lora, train_all, train_some_layers
from llmmod.models.quantize import quantization_config
from llmmod.models.rebuild import rebuilt
from llmmod.schema.finetune import FreezeConf, FullConf, LoraConf
from llmmod.schema.quantization import QuantizationConf

LORA = {"name": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
WAYS = {
    "full": lambda model: train_all(model, FullConf(name="full")),
    "freeze": lambda model: train_some_layers(model, FreezeConf(name="freeze", num_layers_trainable=1)),
    "lora": lambda model: add_lora(model, LoraConf(**LORA)),
    "qlora": lambda model: add_lora(
        rebuilt(model, quantization_config=quantization_config(QuantizationConf(bits=4))), LoraConf(**LORA | {"name": "qlora"})
    ),
}


@pytest.fixture
def documents(tiny_tokenizer):
    """Texts of one pattern, and two of it that are held out; every token is learnt."""
    texts = [
        f"The {animal} sat on the {place}. The {place} was warm." for animal in ("cat", "dog", "fox") for place in ("mat", "sofa", "bed")
    ]
    rows = [[*tiny_tokenizer(text, add_special_tokens=False)["input_ids"], tiny_tokenizer.eos_token_id] for text in texts]
    made = [{"input_ids": ids, "labels": list(ids)} for ids in rows]
    return Dataset.from_list(made[:7]), Dataset.from_list(made[7:])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_on_held_out_documents_falls(way, seed, tiny_llama, documents, toy_trainer):
    torch.manual_seed(seed)
    model = WAYS[way](copy.deepcopy(tiny_llama))
    train, held_out = documents
    trainer = toy_trainer(model, train=train, evaluation=held_out, num_train_epochs=15.0, eval_strategy="no", eval_on_start=False)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before

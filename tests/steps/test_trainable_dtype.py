"""A 16-bit checkpoint in the train step: saved, in memory, and resumed."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from safetensors.torch import load_file

from llmmod.config.schema.model import FreezeConf, FullConf, LoraConf
from llmmod.config.schema.steps import TrainConf
from llmmod.steps.train import Train

WAYS = {
    "full": FullConf(name="full"),
    "freeze": FreezeConf(name="freeze", num_layers_trainable=1, extra_trainable=["embed_tokens"]),
    "lora": LoraConf(name="lora", task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
}
UP = "model.layers.1.mlp.up_proj.weight"
TRAINED = {"full": UP, "freeze": UP, "lora": "base_model.model.lm_head.weight"}
# 18 examples in batches of 4: 5 steps per epoch; step 2 is in the middle of one.
RESUMED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2.0, "learning_rate": 1e-4, "lr_scheduler_type": "cosine"}


@pytest.fixture
def run(tmp_path, tiny_llama, tiny_tokenizer, toy_splits, sft_conf, toy_session):
    """A function that trains the tiny model in 16 bits -> the session."""

    def trained(way, name, dtype, **changes):
        conf, model = sft_conf(**RESUMED | changes), copy.deepcopy(tiny_llama).to(dtype)
        parts = {"tokenizer": tiny_tokenizer, "splits": toy_splits, "training": conf, "finetune": copy.deepcopy(WAYS[way])}
        made = toy_session(tmp_path / name, model=model, **parts)
        Train(TrainConf(), "train").run(made)
        return made

    return trained


def weights(directory):
    (file,) = directory.glob("*model.safetensors")
    return file, load_file(file)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("way", WAYS)
def test_saved_as_the_checkpoint_resumed_in_float32(run, way, dtype):
    whole = run(way, "whole", dtype)
    file, saved = weights(whole.run_dir / "train")
    checkpoint = whole.run_dir / "train" / "checkpoint-2"
    _, kept = weights(checkpoint)
    assert {value.dtype for name, value in saved.items() if "lora_" not in name} == {dtype}
    assert {value.dtype for name, value in saved.items() if "lora_" in name} <= {torch.float32}
    assert kept[TRAINED[way]].dtype is torch.float32
    assert not torch.equal(kept[TRAINED[way]], kept[TRAINED[way]].to(dtype).float()), "more than 16 bits hold"
    model = whole.current.model
    in_memory = dict((model.get_base_model() if way == "lora" else model).named_parameters())
    name = "lm_head.modules_to_save.default.weight" if way == "lora" else TRAINED[way]
    assert torch.equal(in_memory[name], saved[TRAINED[way]]), "what is handed on is what is saved"

    resumed = run(way, "resumed", dtype, resume_from_checkpoint=str(checkpoint))
    again, _ = weights(resumed.run_dir / "train")
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(file.read_bytes()).digest()
    losses = [entry["eval_loss"] for made in (whole, resumed) for entry in made.get("trainer").state.log_history if "eval_loss" in entry]
    assert len(set(losses)) == len(losses) / 2, "measured on the masters, which are the same bits as well"

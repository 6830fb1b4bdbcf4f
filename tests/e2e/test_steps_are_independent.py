"""A training step doesn't change the base model that it shares with the next one: weights, biases, dropout, settings.

Each stage, with each way to fine-tune, runs before an sft step, whose weights must equal, bit for bit, those of an sft that ran alone.
"""

from __future__ import annotations

import json

import pytest
import torch

import llmmod

STAGES = ("pt", "sft", "rm", "dpo", "kto", "ppo", "grpo")
# For each way, the settings that change most of the base model.
WAYS = {
    "full": ["finetune=full"],
    "freeze": ["finetune=freeze", "finetune.num_layers_trainable=1"],
    "lora": ["finetune=lora", "finetune.bias=all", "finetune.modules_to_save=[final_layernorm]"],
    "qlora": ["finetune=qlora", "finetune.bias=lora_only"],
}
ROWS = {
    "pt": {"text": "The answer to {n} is {n}, and it will stay so."},
    "sft": {"prompt": "What is {n}?", "response": "It is {n}."},
    "rm": {"prompt": "What is {n}?", "chosen": "It is {n}.", "rejected": "No."},
    "kto": {"prompt": "What is {n}?", "completion": "It is {n}.", "label": True},
    "ppo": {"prompt": "What is {n}?"},
}
QUICK = ["use_cpu=true", "max_steps=1", "save_strategy=no", "eval_strategy=no", "eval_on_start=false", "learning_rate=1e-2"]
QUICK += ["lr_scheduler_type=constant", "warmup_steps=0", "per_device_train_batch_size=2"]
OWN = {
    "kto": ["loss_type=apo_zero_unpaired"],  # the only loss that allows trained biases
    "ppo": ["max_completion_length=3", "reward.mine._target_=llmmod.rewards.brevity"],
    "grpo": ["max_completion_length=3", "num_generations=2", "reward.mine._target_=llmmod.rewards.brevity"],
}


@pytest.fixture
def checkpoint(tiny_tokenizer, tmp_path):
    """A tiny model with biases on all layers and dropout between them."""
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, resid_pdrop=0.2, embd_pdrop=0.2, partial_rotary_factor=0.5,
        bos_token_id=tiny_tokenizer.bos_token_id, eos_token_id=tiny_tokenizer.eos_token_id, pad_token_id=tiny_tokenizer.pad_token_id,
    )  # fmt: skip
    PhiForCausalLM(config).save_pretrained(tmp_path / "phi")
    tiny_tokenizer.save_pretrained(tmp_path / "phi")
    return tmp_path / "phi"


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch):
    """A function that trains steps, given as name -> stage, in this order."""
    monkeypatch.setenv("LLMMOD_CACHE", str(tmp_path / "cache"))
    for kind, row in ROWS.items():
        rows = [{name: value.format(n=n) if isinstance(value, str) else n % 2 == 0 for name, value in row.items()} for n in range(8)]
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name, *more, **steps):
        given = ["model=phi1_5", f"model.pretrained_model_name_or_path={checkpoint}", "render=vanilla", f"output_dir={tmp_path / name}"]
        given += [f"pipeline=[{','.join(steps)}]"]
        for step, stage in steps.items():
            kind = {"dpo": "rm", "grpo": "ppo"}.get(stage, stage)
            given += [f"+step@steps.{step}=train", f"+stage@steps.{step}.training={stage}", f"+dataset@steps.{step}.dataset=json"]
            given += [f"steps.{step}.dataset.data_files={tmp_path / kind}.jsonl"]
            given += [f"{'+' if 'mine' in field else ''}steps.{step}.training.{field}" for field in [*QUICK, *OWN.get(stage, [])]]
        llmmod.run(llmmod.compose([*given, *more]))
        return tmp_path / name

    return run


def weights(directory):
    return next(directory.glob("*.safetensors")).read_bytes()


@pytest.mark.parametrize("way", WAYS)
def test_a_step_does_not_change_the_base(run, way):
    root = WAYS["qlora"] if way == "qlora" else ["finetune=full"]
    own = [] if way == "qlora" else ["+finetune@steps.{}." + WAYS[way][0], *(f"steps.{{}}.{text}" for text in WAYS[way][1:])]
    steps, more = {"alone": "sft"}, []
    for stage in STAGES:
        steps |= {f"own_{stage}": stage, f"after_{stage}": "sft"}
        more += [text.format(f"own_{stage}") for text in own]
    directory = run("run", "reuse=false", *root, *more, **steps)
    alone = weights(directory / "alone")
    assert [stage for stage in STAGES if weights(directory / f"after_{stage}") != alone] == []


def test_a_reused_step_does_not_change_the_base(run, tmp_path):
    lora = ["+finetune@steps.own.finetune=lora", "steps.own.finetune.bias=all", "finetune=full"]
    run("one", *lora, own="dpo", after="sft")
    faster = "steps.after.training.learning_rate=2e-2"
    reused = run("two", *lora, faster, own="dpo", after="sft")
    steps = json.loads((reused / "run.json").read_text())["steps"]
    assert ["reused_from" in step for step in steps] == [True, False]
    alone = weights(run("alone", "finetune=full", faster, after="sft") / "after")
    assert weights(reused / "after") == alone
    assert weights(tmp_path / "one" / "after") != alone

"""Adapters that are initialised from the base's weights resume bit for bit: base, adapter and saved files."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file

from llmmod.config.schema.model import LoraConf
from llmmod.models.adapters.base_changing_init import save_for_base
from llmmod.models.adapters.load import load_adapter
from llmmod.models.adapters.setup import setup_lora

WAYS = {
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA, randomised": {"init_lora_weights": "pissa_niter_2"},
    "OLoRA": {"init_lora_weights": "olora"},
    "LoftQ": {"init_lora_weights": "loftq"},
    "DoRA": {"use_dora": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_is_the_uninterrupted_one_and_is_found_again(toy_trainer, tiny_llama, tmp_path, way):
    def logits(model):
        with torch.no_grad():
            return model.eval()(input_ids=torch.arange(10, 34).reshape(2, 12)).logits

    def run(name, **resume):
        torch.manual_seed(2)  # as the step train does before it creates the adapter
        model = setup_lora(
            copy.deepcopy(tiny_llama),
            LoraConf(name="lora", task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], **WAYS[way]),
        )
        arguments = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "eval_on_start": False, "seed": 5}
        trainer = toy_trainer(model=model, max_steps=3, **arguments)
        trainer.train(**resume)
        trainer.save_model(str(tmp_path / name))
        save_for_base(trainer.model, tmp_path / name)
        return trainer.model.eval()

    whole = run("whole")
    resumed = run("resumed", resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))
    saved = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "resumed")]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    again = load_adapter(copy.deepcopy(tiny_llama), str(tmp_path / "resumed"))
    torch.testing.assert_close(logits(again), logits(whole), rtol=1e-4, atol=5e-5)

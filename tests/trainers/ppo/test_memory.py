"""The number of weights in PPO: one base for all adapters, and the reference copies only trained weights."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from transformers import TrainerCallback

from llmmod.config.schema.model import LoraConf
from llmmod.models.adapters.setup import setup_lora
from llmmod.models.reward import mark_trained, with_reward_head


class Count(TrainerCallback):
    """The largest number of matrices with the base's shapes that existed after an optimizer step."""

    def __init__(self, shapes):
        self.shapes, self.most = shapes, 0

    def now(self):
        gc.collect()
        # Exactly these types: other tests leave torch.compile's tensors without storage.
        found = (thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.shape in self.shapes)
        return len({tensor.data_ptr() for tensor in found})

    def on_step_end(self, args, state, control, **kwargs):
        self.most = max(self.most, self.now())


@pytest.fixture
def reward(tiny_llama, tmp_path):
    """The directory of a reward adapter that was trained on the policy's base."""
    lora = LoraConf(name="lora", task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    model = setup_lora(with_reward_head(copy.deepcopy(tiny_llama)), lora)
    mark_trained(model)
    model.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


# Without an optimizer's state, only the reference adds matrices: none with an adapter, otherwise as many as are trained.
@pytest.mark.parametrize("way", ["lora", "freeze", "full"])
def test_one_base(ppo_trainer, tiny_llama, prepared, reward, way):
    matrices = {p.shape for p in tiny_llama.parameters() if p.dim() == 2}
    count = Count(matrices)
    before = count.now()
    policy = prepared(way)
    trained = len([p for p in policy.parameters() if p.requires_grad and p.shape in matrices])
    beside = {"reward": {"path": str(reward)}, "scorer": None} if way == "lora" else {}
    trainer = ppo_trainer(policy, callbacks=[count], optim="sgd", max_steps=5, **beside)
    trainer.train()
    assert count.most - before == (0 if way == "lora" else trained)
    assert trained > 0 or way == "lora"

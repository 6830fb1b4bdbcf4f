"""llmmod.trainers.efficient gives the outputs and gradients of peft's own forward, in float32 within 1e-5."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn

from llmmod.trainers.efficient import efficient_lora


class Two(nn.Module):
    """Two linear layers, the first's output used twice."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8, bias=False)

    def forward(self, x):
        middle = self.up(x)
        return self.down(middle * torch.sigmoid(middle))


def adapted(**changes):
    torch.manual_seed(0)
    model = get_peft_model(Two(), LoraConfig(r=4, lora_alpha=6, target_modules=["up", "down"], init_lora_weights=False, **changes))
    return model.train()


def run(model):
    """The output, and the gradients of the input and of all trained weights."""
    torch.manual_seed(1)
    x = torch.randn(2, 3, 8, requires_grad=True)
    out = model(x)
    out.square().sum().backward()
    found = [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]
    model.zero_grad()
    return found


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_rslora": True}, {"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}],
    ids=lambda changes: next(iter(changes), "plain"),
)
def test_as_peft_has_it(changes):
    model = adapted(**changes)
    own = run(model)
    with efficient_lora():
        lean = run(model)
    assert len(own) >= 6
    for mine, its in zip(lean, own, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


def test_adapters_switched_off_and_merged():
    model = adapted().eval()
    x = torch.randn(3, 8)
    plain = model.get_base_model()
    with torch.no_grad(), efficient_lora():
        with_adapter = model(x)
        with model.disable_adapter():
            assert not torch.allclose(model(x), with_adapter)
        model.merge_adapter()
        torch.testing.assert_close(plain(x), with_adapter, rtol=1e-5, atol=1e-5)


def test_other_types_are_left_to_peft():
    model = adapted()
    with efficient_lora(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.randn(3, 8)).dtype == torch.bfloat16


def test_the_patch_ends_with_the_block():
    before = Linear.forward
    with efficient_lora():
        assert Linear.forward is not before
    assert Linear.forward is before

"""llmmod.trainers.efficient.efficient_mlps: the same results as transformers and peft, with fewer arrays kept for the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Phi3Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from llmmod.trainers.efficient import efficient_lora, efficient_mlps

ROWS, LENGTH = 3, 24
LORA = {"r": 4, "lora_alpha": 6, "target_modules": ["gate_proj", "up_proj", "down_proj"], "init_lora_weights": False}
# peft's arguments (None: train all), and the number of arrays that a layer keeps of gate, act(gate), up and the product.
CASES = {
    "full": (None, 3),
    "lora": (LORA, 2),
    "rslora": ({**LORA, "use_rslora": True}, 2),
    "dropout": ({**LORA, "lora_dropout": 0.5}, 3),
    "dora": ({**LORA, "use_dora": True}, 3),
    "lora_bias": ({**LORA, "lora_bias": True}, 3),
    "all but down": ({**LORA, "target_modules": ["gate_proj", "up_proj"]}, 2),
}


@pytest.fixture
def model(tiny_llama):
    def made(settings):
        torch.manual_seed(0)
        plain = copy.deepcopy(tiny_llama)
        return (plain if settings is None else get_peft_model(plain, LoraConfig(**settings))).train()

    return made


def step(model, **inputs):
    """The loss, the gradients by name, and the bytes kept for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # alive, so that no other gets its address
        return tensor

    ids = torch.randint(5, 90, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids, **inputs).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients, sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("settings", "arrays"), CASES.values(), ids=CASES)
def test_loss_and_gradients_are_the_same_and_less_is_kept(model, settings, arrays):
    trained = model(settings)
    with efficient_lora():
        loss, gradients, kept = step(trained)
        with efficient_mlps(trained):
            own_loss, own_gradients, own_kept = step(trained)
    assert torch.equal(own_loss, loss)
    assert own_gradients.keys() == gradients.keys() != set()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own_gradients[name], gradient, rtol=1e-6, atol=1e-6 * gradient.abs().max().item(), msg=name)
    config = trained.config
    array = ROWS * LENGTH * config.intermediate_size * 4 * config.num_hidden_layers
    before = 3 if settings and "down_proj" not in settings["target_modules"] else 4
    assert kept - own_kept == (before - arrays) * array > 0


def test_four_bit(model, tiny_llama):
    from bitsandbytes.nn import Linear4bit

    trained = model(LORA)
    for layer in trained.modules():
        if hasattr(layer, "base_layer"):
            old = layer.base_layer
            layer.base_layer = Linear4bit(old.in_features, old.out_features, bias=False, quant_type="nf4", compute_dtype=torch.float32)
            layer.base_layer.load_state_dict({"weight": old.weight})
            layer.base_layer.to("cpu")
    loss, gradients, kept = step(trained)
    with efficient_mlps(trained):
        own_loss, own_gradients, own_kept = step(trained)
    assert torch.equal(own_loss, loss)
    assert all(torch.equal(own_gradients[name], gradient) for name, gradient in gradients.items())
    assert own_kept < kept


def test_with_checkpointed_layers(model):
    trained = model(LORA)
    _, gradients, _ = step(trained)
    trained.gradient_checkpointing_enable({"use_reentrant": False})
    with efficient_mlps(trained):
        _, own_gradients, _ = step(trained)
    assert own_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own_gradients[name], gradient, rtol=1e-6, atol=1e-6 * gradient.abs().max().item(), msg=name)


def test_with_autocast(model):
    trained = model(LORA)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients, _ = step(trained)
        with efficient_mlps(trained):
            own_loss, own_gradients, _ = step(trained)
    assert torch.equal(own_loss, loss)
    assert all(torch.equal(own_gradients[name], gradient) for name, gradient in gradients.items())


def test_a_hook_is_called(model):
    trained, seen = model(LORA), []
    down = next(module for name, module in trained.named_modules() if name.endswith("down_proj"))
    down.register_forward_hook(lambda *given: seen.append(1))
    with efficient_mlps(trained):
        step(trained)
    assert seen == [1]


def test_classes_that_compute_the_same_are_patched_while_it_lasts(tiny_llama):
    forwards = {cls: cls.forward for cls in (LlamaMLP, Gemma2MLP, Phi3MLP)}
    others = Gemma2MLP(Gemma2Config(hidden_size=8, intermediate_size=8)), Phi3MLP(Phi3Config(hidden_size=8, intermediate_size=8))
    holder = torch.nn.ModuleList([tiny_llama, *others])
    with efficient_mlps(holder):
        assert [cls for cls, forward in forwards.items() if cls.forward is not forward] == [LlamaMLP, Gemma2MLP]
    assert {cls: cls.forward for cls in forwards} == forwards

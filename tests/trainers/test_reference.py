"""The reference is the initial policy and gives the same values as a frozen copy, for every way to keep it."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from llmmod.config.schema.model import LoraConf
from llmmod.models.adapters.setup import setup_lora
from llmmod.trainers.reference import initial_weights, reference

IDS = torch.tensor([[11, 12, 13, 100, 101, 102], [21, 103, 7, 8, 9, 10]])


def log_probs(model):
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=IDS).logits, -1)


def adapted(model, *, new):
    torch.manual_seed(2)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=new, task_type="CAUSAL_LM"))


WAYS = {
    "full": lambda model: model.requires_grad_(True),
    "freeze": lambda model: model.requires_grad_(False) and model.model.layers[0].requires_grad_(True) and model,
    "new adapter": lambda model: adapted(model, new=True),
    "adapter that goes on": lambda model: adapted(model, new=False),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_a_frozen_copy(tiny_llama, way):
    policy = WAYS[way](tiny_llama).eval()
    frozen = copy.deepcopy(policy)
    initial = initial_weights(policy)
    kept = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.05 * torch.randn_like(parameter)
    changed, before = log_probs(policy), [parameter.clone() for parameter in trained]
    assert (changed - log_probs(frozen)).abs().max() > 0.01
    with reference(policy, initial):
        assert torch.equal(log_probs(policy), log_probs(frozen))
    assert torch.equal(log_probs(policy), changed)
    assert all(torch.equal(parameter, weights) for parameter, weights in zip(trained, before, strict=True))
    assert [parameter for parameter in policy.parameters() if parameter.requires_grad] == trained
    assert kept.keys() == policy.state_dict().keys()


def test_what_is_kept_is_what_is_trained(tiny_llama):
    """A new adapter doesn't need a copy; frozen layers are shared. Initial values of full weights trained elsewhere are unknown."""
    assert initial_weights(adapted(copy.deepcopy(tiny_llama), new=True)) is None
    going_on = initial_weights(adapted(copy.deepcopy(tiny_llama), new=False))
    assert all("lora_" in name for name in going_on)
    frozen = initial_weights(WAYS["freeze"](tiny_llama))
    assert all(name.startswith("model.layers.0.") for name in frozen)
    assert reference(tiny_llama, None) is None


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("known", [True, False], ids=["trained here", "evaluated only"])
def test_where_the_base_was_changed_it_is_the_untouched_model(tiny_llama, init, known):
    untouched = log_probs(copy.deepcopy(tiny_llama))
    policy = setup_lora(tiny_llama, LoraConf(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=init)).eval()
    initial = initial_weights(policy) if known else None
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter) * parameter.requires_grad
    changed = log_probs(policy)
    assert (changed - untouched).abs().max() > 0.01
    with reference(policy, initial):
        assert torch.allclose(log_probs(policy), untouched, atol=1e-4)
    assert torch.equal(log_probs(policy), changed)


def test_the_reference_is_unknown_after_loftq(tiny_llama):
    policy = adapted(tiny_llama, new=True)
    policy.peft_config["default"].init_lora_weights = "loftq"
    assert reference(policy, None) is None

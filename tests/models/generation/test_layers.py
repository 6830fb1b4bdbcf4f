"""The decoder's layers give the same numbers as those of transformers and PEFT, whose own layers are used in all other cases."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from llmmod.models.generation.step import LeanLayers
from llmmod.models.loading.tiny import tiny_model

ROOT = Path(__file__).parents[3]
IDS = torch.tensor([[33, 44, 55, 66], [77, 88, 99, 111]])


def with_adapters(model, *kinds, dtype=torch.float64):
    """The model with an adapter of each kind, all active, each with its own scale; `dtype=None` keeps the model's dtype."""
    torch.manual_seed(0)
    targets = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "lora_dropout": 0.3}
    for place, kind in enumerate(kinds):
        conf = LoraConfig(**{"r": 2 + place, "lora_alpha": 5, "init_lora_weights": False, **targets, **kind})
        model = get_peft_model(copy.deepcopy(model), conf) if not place else (model.add_adapter(f"a{place}", conf), model)[1]
    model.base_model.set_adapter(["default", *(f"a{place}" for place in range(1, len(kinds)))])
    return (model if dtype is None else model.to(dtype)).eval()


def lora(layers):
    """How many of the layers have adapters. PEFT's class is called Linear like torch's, so the test is by type."""
    return sum(isinstance(layer, LoraLayer) for layer in layers._found)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@pytest.mark.parametrize(
    ("kinds", "taken"),
    [([{}], 14), ([{"use_rslora": True}, {}, {"target_modules": ["q_proj", "up_proj"]}], 14), ([{"target_modules": ["v_proj"]}], 2),
     ([{"use_dora": True}], 0), ([{}, {"lora_bias": True}], 0)],
    ids=["one", "three at once", "on some layers", "DoRA", "one with a bias and one without"],
)  # fmt: skip
def test_the_sum_that_peft_computes(tiny_llama, kinds, taken):
    """Within 1e-9 of the largest logit, in float64: the order of scaling and adding differs."""
    model = with_adapters(tiny_llama, *kinds)
    wanted = logits(model)
    forwards = LeanLayers(model)
    assert lora(forwards) == taken, "tiny_llama has two layers of seven products"
    with forwards.used():
        found = logits(model)
    assert (found - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    assert torch.equal(logits(model), wanted), "afterwards all is as before"


def test_adapters_that_are_off_or_merged_are_left_to_peft(tiny_llama):
    model = with_adapters(tiny_llama, {})
    on = logits(model)
    with model.disable_adapter():
        assert lora(LeanLayers(model)) == 0
        assert not torch.equal(logits(model), on)
    model.merge_adapter()
    assert lora(LeanLayers(model)) == 0
    assert lora(LeanLayers(tiny_llama)) == 0


def test_values_may_change_and_hooks_run(tiny_llama):
    """Weights change between two rollouts, accelerate hooks into layers, and a dtype may need a conversion."""
    model = with_adapters(tiny_llama, {})
    seen = []
    layers = model.base_model.model.model.layers
    layers[0].self_attn.q_proj.base_layer.register_forward_hook(lambda *given: seen.append(len(given)))
    layers[1].mlp.up_proj.lora_A["default"].register_forward_pre_hook(lambda *given: seen.append(len(given)))
    forwards = LeanLayers(model)
    assert lora(forwards) == 13, "a hooked adapter is left to PEFT"
    with torch.no_grad():
        layers[0].self_attn.q_proj.lora_B["default"].weight.mul_(3)
    wanted = logits(model)
    with forwards.used():
        assert (logits(model) - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    assert seen == [3, 2] * 2
    layers[0].mlp.up_proj.lora_A.float(), layers[0].mlp.up_proj.lora_B.float()
    wanted = logits(model)
    with LeanLayers(model).used():
        assert (logits(model) - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        assert lora(LeanLayers(model)) == 0


def test_beside_weights_of_4_bit():
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear4bit
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(**sizes)).eval()  # a 4-bit block has 64 weights
    for layer in base.model.layers:
        old = layer.mlp.up_proj
        layer.mlp.up_proj = Linear4bit(old.in_features, old.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        layer.mlp.up_proj.load_state_dict(old.state_dict())
        layer.mlp.up_proj.to("cpu")
    model = with_adapters(base, {}, {}, dtype=None)
    wanted = logits(model)
    forwards = LeanLayers(model)
    assert lora(forwards) == 14
    with forwards.used():
        assert (logits(model) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize(("option", "norms"), [("qwen3", 9), ("gemma3", 0), ("phi1_5", 0)])
def test_norms_that_torch_has(option, norms, tiny_tokenizer):
    """Two per layer, two for queries and keys, and one after the last. Gemma's norm adds 1 to its weights, Phi's subtracts the mean."""
    architecture = yaml.safe_load((ROOT / "conf" / "model" / f"{option}.yaml").read_text(encoding="utf-8"))["architecture"]
    model = tiny_model(architecture | {"num_hidden_layers": 2}, tokenizer=tiny_tokenizer, seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3) if "norm" in name else None
    layers = LeanLayers(model)
    assert sum("RMSNorm" in type(layer).__name__ for layer in layers._found) == norms
    wanted = logits(model)
    with layers.used():
        assert (logits(model) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    layers = LeanLayers(model.bfloat16())
    assert all(type(layer) is torch.nn.Linear for layer in layers._found), "rounded in between by transformers"


def test_weights_in_pieces_are_left_alone(tiny_llama):
    """FSDP2 keeps shards, and replaces them with whole tensors while a layer computes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = with_adapters(tiny_llama, {}, dtype=None)
    wanted = logits(model)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for layer in (*model.base_model.model.model.layers, model):
            fully_shard(layer, mesh=mesh)
        layers = LeanLayers(model)
        assert not layers._found
        with layers.used():
            assert torch.allclose(logits(model), wanted, atol=1e-5)
    finally:
        torch.distributed.destroy_process_group()

"""If a model doesn't have a name or number in `finetune.*`, the error lists those that it has."""

from __future__ import annotations

import pytest
import torch

from llmmod.config.schema.model import LoraConf
from llmmod.errors import ConfigError
from llmmod.models.adapters.setup import setup_lora
from llmmod.models.families.native import config_class
from llmmod.models.loading.tiny import random_model, shrink_config, tiny_model

LINEAR = ["q_proj", "down_proj"]
UNKNOWN = {
    "rank of no module": (
        {"rank_pattern": {"q_proj": 2, "qproj": 4}},
        "finetune.rank_pattern.qproj: doesn't match one of the 4 modules with an adapter. Modules with an adapter: down_proj, q_proj.",
    ),
    "rank of a module without an adapter": ({"rank_pattern": {"v_proj": 2}}, "finetune.rank_pattern.v_proj: doesn't match one of the"),
    "alpha of no module": ({"alpha_pattern": {"layers.7.q_proj": 2}}, "finetune.alpha_pattern.layers.7.q_proj: doesn't match one of the"),
    "a layer beyond the last": (
        {"layers_to_transform": [1, 2]},
        "finetune.layers_to_transform: 2 is not a layer of LlamaForCausalLM, which has 2. Allowed: 0 to 1.",
    ),
    "a module to save": (
        {"modules_to_save": ["lm_haed"]},
        "finetune.modules_to_save: LlamaForCausalLM doesn't have a module 'lm_haed'. Did you mean 'lm_head'?",
    ),
    "a module to leave out": (
        {"exclude_modules": ["q_porj"]},
        "finetune.exclude_modules: LlamaForCausalLM doesn't have a module 'q_porj'. Did you mean 'q_proj'",
    ),
    "a token": ({"trainable_token_indices": [3, 10**6]}, "finetune.trainable_token_indices: 1000000 is not a token. Allowed: 0 to "),
    "a rank beyond the weight's": (
        {"r": 500, "init_lora_weights": "pissa"},
        "finetune.r: 500 with init_lora_weights=pissa, but the weight of model.layers.0.mlp.down_proj has only",
    ),
    "nothing left": ({"exclude_modules": LINEAR}, "finetune: peft can't make these adapters: No modules were targeted for adaptation."),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_error_lists_what_the_model_has(tiny_llama, name):
    fields, line = UNKNOWN[name]
    with pytest.raises(ConfigError) as error:
        setup_lora(tiny_llama, LoraConf(name="lora", target_modules=LINEAR, **fields))
    assert str(error.value.problems[0]).startswith(line)


def test_patterns_are_matched_as_peft_matches_them(tiny_llama):
    patterns = {"layers.0.self_attn.q_proj": 2, r".*\.1\..*down_proj": 3}
    adapted = setup_lora(tiny_llama, LoraConf(name="lora", target_modules=LINEAR, rank_pattern=patterns))
    ranks = {name: module.r["default"] for name, module in adapted.get_base_model().named_modules() if hasattr(module, "lora_A")}
    assert {".".join(name.split(".")[2::2]): rank for name, rank in ranks.items()} == {
        "0.q_proj": 2, "0.down_proj": 8, "1.q_proj": 8, "1.down_proj": 3,
    }  # fmt: skip


def test_a_rehearsal_has_the_layers_and_ranks_that_fit_its_stand_in(tiny_tokenizer):
    """Layer 30 of 32 is valid although the tiny model has two layers, and rank 64 is although its matrices have at most 64 columns."""
    architecture = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = tiny_model(architecture, tokenizer=tiny_tokenizer, seed=0)
    conf = LoraConf(
        name="lora", target_modules=LINEAR, r=64, init_lora_weights="pissa", rank_pattern={"q_proj": 48}, layers_to_transform=[30]
    )
    adapted = setup_lora(model, conf)
    assert sorted(adapted.targeted_module_names, reverse=True) == ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    assert {module.r["default"] for module in adapted.get_base_model().modules() if hasattr(module, "lora_A")} == {8}


@pytest.mark.parametrize(("model_type", "without"), [("mamba", "out_proj"), ("phimoe", "router")])
def test_all_linear_is_all_that_can_have_an_adapter(tiny_tokenizer, model_type, without):
    """peft refuses layers whose weights Mamba reads directly; Phi-3.5-MoE's routers subclass Linear but return pairs."""
    model = random_model(shrink_config(config_class(model_type)(), vocab_size=len(tiny_tokenizer), special={"pad_token_id": 0}), seed=0)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")}
    adapted = setup_lora(model, LoraConf(name="lora", target_modules="all-linear", r=2))
    assert set(adapted.targeted_module_names) == {name for name in linear if not name.endswith(without)} < linear
    assert adapted(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_a_full_size_model_gets_the_layers_that_were_asked_for(tiny_llama):
    conf = LoraConf(name="lora", target_modules=LINEAR, layers_to_transform=1)
    assert {name.split(".")[2] for name in setup_lora(tiny_llama, conf).targeted_module_names} == {"1"}

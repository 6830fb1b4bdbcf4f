from __future__ import annotations

import dataclasses
import importlib.util
import json
import warnings

import peft
import pytest
import torch
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM

from llmmod.config.schema.generated.lora import ACCEPTED
from llmmod.config.schema.model import LoraConf
from llmmod.errors import ConfigError
from llmmod.models.adapters.lora import lora_config


def composed(**values) -> LoraConf:
    """The configuration as in a run: through OmegaConf, with `target_modules` overridden (its default refers to the model)."""
    node = OmegaConf.merge(OmegaConf.structured(LoraConf), {"name": "lora", "target_modules": ["q_proj", "v_proj"], **values})
    return OmegaConf.to_object(node)


def test_defaults_are_peft_s_own():
    assert lora_config(composed()) == peft.LoraConfig(target_modules=["q_proj", "v_proj"])


def test_only_what_differs_is_passed(monkeypatch):
    passed = {}
    monkeypatch.setattr(peft, "LoraConfig", lambda **values: passed.update(values))
    lora_config(composed(r=8, lora_alpha=32, rank_pattern={"q_proj": 4}))
    assert passed == {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 32, "rank_pattern": {"q_proj": 4}}


NESTED = {
    name: next(t for t in types if t.startswith("peft.")) for name, types in ACCEPTED.items() if any(t.startswith("peft.") for t in types)
}
# the other fields that peft needs to keep the nested configuration, and one of its fields with a value other than the default
SETTINGS = {
    "loftq_config": ({"init_lora_weights": "loftq"}, {"loftq_iter": 3}),
    "eva_config": ({"init_lora_weights": "eva"}, {"rho": 1.5}),
    "corda_config": ({"init_lora_weights": "corda"}, {"corda_method": "kpm"}),
    "lora_ga_config": ({}, {"direction": "ArBr"}),
    "velora_config": ({}, {"num_groups": 4}),
    "monteclora_config": ({}, {"num_samples": 3}),
    "runtime_config": ({}, {"ephemeral_gpu_offload": True}),
    "use_bdlora": ({}, {"nblocks": 2}),
    "arrow_config": ({}, {"top_k": 5}),
    "kasa_config": ({}, {"beta": 0.5}),
}


def test_every_nested_configuration_is_covered():
    assert SETTINGS.keys() == NESTED.keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_dict_becomes_the_nested_class(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)  # loftq only checks that scipy is installed
    others, values = SETTINGS[name]
    built = getattr(lora_config(composed(**others, **{name: values})), name)
    if name == "loftq_config":  # peft itself keeps this one as a dict of all its fields
        assert built == {"loftq_bits": 4, "loftq_iter": 3}
        return
    assert f"{type(built).__module__}.{type(built).__qualname__}" == NESTED[name]
    for key, value in values.items():
        assert getattr(built, key) == value
        assert getattr(built, key) != getattr(type(built)(), key)


def test_an_empty_dict_asks_for_the_nested_class_s_defaults():
    assert lora_config(composed(velora_config={})).velora_config == type(lora_config(composed(velora_config={})).velora_config)()
    assert lora_config(composed()).velora_config is None


def test_an_unknown_nested_field_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        lora_config(composed(eva_config={"roh": 1.0, "tua": 2.0}))
    assert str(caught.value) == (
        "finetune.eva_config.roh: no such field. Did you mean 'rho'?\nfinetune.eva_config.tua: no such field. Did you mean 'tau'?"
    )


def test_values_that_peft_refuses_are_the_user_s_error():
    with pytest.raises(ConfigError, match=r"finetune.eva_config: EvaConfig refuses it: .*rho"):
        lora_config(composed(eva_config={"rho": 0.5}))
    with pytest.raises(ConfigError, match=r"finetune: LoraConfig refuses it: DoRA does not support megatron_core"):
        lora_config(composed(use_dora=True, megatron_config={"x": 1}))


def plain(value):
    """Whether the value contains plain Python types only."""
    if dataclasses.is_dataclass(value):
        return all(plain(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, dict):
        return type(value) is dict and all(plain(v) for v in value.values())
    if isinstance(value, list | set):
        return type(value) in (list, set) and all(plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)


def test_an_adapted_model_saves_and_loads_the_same(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
    base = LlamaForCausalLM(LlamaConfig(**sizes))
    settings = {"rank_pattern": {"q_proj": 4}, "modules_to_save": ["lm_head"], "velora_config": {"num_groups": 2}, "use_rslora": True}
    config = lora_config(composed(task_type="CAUSAL_LM", layers_to_transform=[1], **settings))
    assert plain(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(base, config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["rank_pattern"] == {"q_proj": 4}
    assert saved["velora_config"]["num_groups"] == 2
    loaded = peft.LoraConfig.from_pretrained(tmp_path)
    assert (loaded.r, loaded.layers_to_transform, loaded.velora_config) == (8, [1], config.velora_config)

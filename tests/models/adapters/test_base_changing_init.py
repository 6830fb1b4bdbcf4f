"""An adapter's changes of its base are undone when it is unloaded, and while the model runs without it."""

from __future__ import annotations

import copy

import pytest
import torch
from ways import moved

from llmmod.config.schema.model import LoraConf
from llmmod.models.adapters.base_changing_init import as_base
from llmmod.models.adapters.load import unload_adapter
from llmmod.models.adapters.setup import setup_inference, setup_lora
from llmmod.models.reward import with_reward_head

FIELDS = [
    pytest.param({"bias": "all"}, id="all biases"),
    pytest.param({"bias": "lora_only"}, id="biases of adapted layers"),
    pytest.param({"modules_to_save": ["final_layernorm", "lm_head"]}, id="modules to save"),
]


def conf(**fields):
    return LoraConf(name="lora", r=2, target_modules=["q_proj", "fc1"], **{"task_type": "CAUSAL_LM"} | fields)


@pytest.fixture
def model(tiny_tokenizer):
    """A tiny model whose layers have biases."""
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "partial_rotary_factor": 0.5}
    return PhiForCausalLM(PhiConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **shape)).eval()


@pytest.mark.parametrize("fields", FIELDS)
def test_the_base_is_what_it_was(model, ids, logits, fields, tmp_path):
    before, state, config = logits(model, ids), copy.deepcopy(model.state_dict()), model.config.to_dict()
    adapted = moved(setup_lora(model, conf(**fields)), by=0.1)
    trained = logits(adapted, ids)
    assert (trained - before).abs().max() > 0.01
    with as_base(adapted):
        assert torch.equal(logits(adapted, ids), before)
    assert torch.equal(logits(adapted, ids), trained)
    adapted.save_pretrained(tmp_path)
    base = unload_adapter(adapted)
    assert base.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    # The adapter on disk contains trained biases, too.
    loaded = setup_inference(base, LoraConf(name="lora", adapters=[str(tmp_path)]))
    assert torch.equal(logits(loaded, ids), trained)
    assert torch.equal(logits(unload_adapter(loaded), ids), before)
    assert model.config.to_dict() == config


def test_a_reward_head_leaves_the_language_model_s_configuration(model):
    config = model.config.to_dict()
    scoring = setup_lora(with_reward_head(model), conf(task_type="SEQ_CLS"))
    assert model.config.num_labels == 1
    scoring.config.pad_token_id = 3
    unload_adapter(scoring)
    assert model.config.to_dict() == config

"""llmmod.models.loading.build: attention that needs an accelerator is refused without one before the model is loaded."""

from __future__ import annotations

import pytest
import torch

from llmmod.config.schema.model import HubConf, ModelConf
from llmmod.errors import ConfigError
from llmmod.models.loading.build import build_model, check_attention

ARCHITECTURE = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_without_an_accelerator_it_is_an_error(monkeypatch, name):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    conf = ModelConf(attn_implementation=name, pretrained_model_name_or_path="nowhere")
    with pytest.raises(ConfigError, match=f"model.attn_implementation: {name} needs an accelerator: .* Allowed here: sdpa, eager, null"):
        build_model(conf, hub=HubConf(), smoke=False, tokenizer=None)


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "sdpa"])
def test_with_an_accelerator_transformers_decides(monkeypatch, name):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    check_attention(name)


@pytest.mark.parametrize("name", ["eager", "sdpa", None])
def test_a_rehearsal_has_the_attention_that_was_asked_for(tiny_tokenizer, ids, logits, name):
    """Eager and SDPA compute the same function within float32's precision."""
    conf = ModelConf(architecture=ARCHITECTURE, attn_implementation=name)
    model = build_model(conf, hub=HubConf(), smoke=True, tokenizer=tiny_tokenizer)
    assert model.config._attn_implementation == (name or "sdpa")
    plain = build_model(ModelConf(architecture=ARCHITECTURE), hub=HubConf(), smoke=True, tokenizer=tiny_tokenizer)
    torch.testing.assert_close(logits(model, ids), logits(plain, ids), rtol=1e-5, atol=1e-6)

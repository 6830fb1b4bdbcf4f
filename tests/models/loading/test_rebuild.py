"""A rebuilt model has the same tensors, not copies of them."""

from __future__ import annotations

import pytest
import torch

from llmmod.models.loading.structure import rebuild_model


def test_the_same_function_on_the_same_memory(tiny_llama, ids, logits):
    new = rebuild_model(tiny_llama)
    assert torch.equal(logits(new, ids), logits(tiny_llama, ids))
    assert all(ours.data_ptr() == theirs.data_ptr() for ours, theirs in zip(new.parameters(), tiny_llama.parameters(), strict=True))


def test_settings_travel_but_are_not_shared(tiny_llama):
    tiny_llama.generation_config.max_new_tokens = 7
    tiny_llama.config._name_or_path = "somewhere"
    new = rebuild_model(tiny_llama)
    assert (new.generation_config.max_new_tokens, new.config._name_or_path) == (7, "somewhere")
    new.generation_config.max_new_tokens = 8
    assert tiny_llama.generation_config.max_new_tokens == 7


def test_a_parameter_without_a_value_is_an_error(tiny_llama):
    state = tiny_llama.state_dict()
    del state["model.norm.weight"]
    with pytest.raises(ValueError, match=r"no value for \['model.norm.weight'\]"):
        rebuild_model(tiny_llama, state)

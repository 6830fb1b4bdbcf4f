"""llmmod.models.packing: support for packed rows, measured on a tiny random model of a class."""

from __future__ import annotations

import json

import pytest

from llmmod.models import packing
from llmmod.models.attention.varlen import PackingMethod
from llmmod.models.families.native import config_class
from llmmod.models.loading.tiny import random_model, shrink_config
from llmmod.models.packing import MAX_LOSS_DIFFERENCE, measured_support, why_not_packed


@pytest.fixture
def make(monkeypatch, tmp_path):
    """A model_type -> a small model of transformers' default configuration, with an empty cache of measurements."""
    monkeypatch.setenv("LLMMOD_CACHE", str(tmp_path))
    monkeypatch.setattr(packing, "_known", [])

    def build(model_type, **fields):
        small = shrink_config(config_class(model_type)(**fields), vocab_size=400, special={"pad_token_id": 0})
        return random_model(small, seed=0)

    return build


@pytest.mark.parametrize("model_type", ["opt", "gpt_neox", "persimmon", "cohere", "qwen2_moe", "olmo", "gemma4_text"])
def test_what_hands_boundaries_down_to_its_attention(make, model_type):
    found = measured_support(make(model_type))
    assert (found.method, found.branches, found.reason) == (PackingMethod.segments, True, None)
    assert found.difference <= MAX_LOSS_DIFFERENCE / 100


@pytest.mark.parametrize("model_type", ["gptj", "mpt", "stablelm", "gemma2", "llama4_text"])
def test_what_adds_a_mask_to_its_scores(make, model_type):
    found = measured_support(make(model_type))
    assert (found.method, found.branches, found.reason) == (PackingMethod.mask, False, None)
    assert found.difference <= MAX_LOSS_DIFFERENCE / 100


@pytest.mark.parametrize("model_type", ["mamba", "jamba", "recurrent_gemma"])
def test_what_carries_a_state_from_one_example_into_the_next(make, model_type):
    model = make(model_type)
    found = measured_support(model)
    assert found.method is None
    said = f"{type(model).__name__} can't keep the examples of a row apart. Measured on a tiny random one: losses differ by up to "
    assert found.reason.startswith(said)
    assert float(found.reason.removeprefix(said).split()[0]) > 100 * MAX_LOSS_DIFFERENCE
    assert why_not_packed(model) == found.reason


def test_a_result_is_cached_by_class_and_versions(make, tmp_path, monkeypatch):
    first = measured_support(make("gpt_neox"))
    (file,) = (tmp_path / "packing").iterdir()
    assert json.loads(file.read_text())["method"] == "segments"
    monkeypatch.setattr(packing, "_measure", lambda *_: pytest.fail("measured again"))
    assert measured_support(make("gpt_neox", hidden_size=3072, intermediate_size=12288, num_attention_heads=24)) == first  # another size
    monkeypatch.setattr(packing, "_measure", lambda *_: packing.PackingSupport(reason="another"))
    assert measured_support(make("gpt_neox", use_parallel_residual=False)).reason == "another"
    monkeypatch.setattr(packing, "installed", lambda name: "99")
    assert measured_support(make("gpt_neox")).reason == "another"


def test_a_damaged_file_is_measured_again(make, tmp_path):
    measured_support(make("gpt_neox"))
    (file,) = (tmp_path / "packing").iterdir()
    file.write_text("{")
    assert measured_support(make("gpt_neox")).method is PackingMethod.segments
    assert json.loads(file.read_text())["method"] == "segments"


def test_a_class_that_can_t_be_made_small_is_refused_with_the_reason(make, monkeypatch):
    model = make("gpt_neox")
    monkeypatch.setattr(packing, "shrink_config", lambda *_, **__: (_ for _ in ()).throw(ValueError("no such size")))
    said = "whether GPTNeoXForCausalLM keeps the examples of a row apart can't be measured on a tiny model of it (ValueError: no such size)"
    assert why_not_packed(model) == said

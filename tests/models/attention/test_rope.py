"""Scaled rotary positions: the factor, the configuration, and the logits of transformers' own model with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmmod.config.compose import compose_config, to_root
from llmmod.config.schema.base import Weights
from llmmod.config.schema.model import HubConf, ModelConf, RopeScalingConf
from llmmod.errors import ConfigError
from llmmod.models.adapters.merge import merged_copy
from llmmod.models.attention.rope import scale_rope
from llmmod.models.generation.settings import context_length
from llmmod.models.loading.build import build_model

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TRAINED = 512  # max_position_embeddings of tests/conftest.py's llama
# What a user of transformers writes into config.json to double the length.
BY_HAND = {
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    "yarn": {
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": TRAINED},
    },
}


def built(directory, tokenizer, *, smoke=False, **fields):
    conf = ModelConf(name="tiny", pretrained_model_name_or_path=str(directory), architecture={"model_type": "llama", **SIZES})
    return build_model(replace(conf, **fields), hub=HubConf(), smoke=smoke, tokenizer=tokenizer)


def scaled(kind, factor=None):
    return RopeScalingConf(type=kind, factor=factor)


@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("length", [16, 700], ids=["within", "beyond what was trained"])
def test_the_logits_are_transformers_own(llama_directory, tiny_llama, tiny_tokenizer, tmp_path, kind, length, logits):
    ids = torch.arange(length).remainder(300).add(5)[None]
    model = built(llama_directory, tiny_tokenizer, rope_scaling=scaled(kind), model_max_length=1024)
    config = json.loads((llama_directory / "config.json").read_text()) | BY_HAND[kind]
    config.pop("rope_theta", None)
    (llama_directory / "config.json").write_text(json.dumps(config))
    by_hand = AutoModelForCausalLM.from_pretrained(llama_directory)
    assert torch.equal(logits(model, ids), logits(by_hand, ids))
    assert torch.equal(logits(model, ids), logits(tiny_llama, ids)) is (kind == "dynamic" and length < TRAINED)
    assert context_length(model) == 1024
    merged_copy(model).save_pretrained(tmp_path / "export")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "export"), ids), logits(by_hand, ids))


def test_linear_divides_the_frequencies():
    """theta**(-2i/d) / factor, for a head of 8 channels."""
    config = AutoConfig.for_model("llama", **SIZES)
    scale_rope(config, kind="linear", factor=4, max_length=None)
    found = AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq
    torch.testing.assert_close(found, torch.tensor([1.0, 0.1, 0.01, 0.001]) / 4)


@pytest.mark.parametrize(
    ("length", "factor"), [(512, 1), (513, 2), (1024, 2), (1025, 3), (2000, 4)], ids=["as trained", "a little", "twice", "more", "four"]
)
def test_the_factor_is_rounded_up(length, factor):
    config = AutoConfig.for_model("llama", **SIZES, max_position_embeddings=TRAINED)
    scale_rope(config, kind="linear", factor=None, max_length=length)
    assert config.rope_parameters["factor"] == factor


def test_off_leaves_every_bit(llama_directory, tiny_llama, tiny_tokenizer, ids, logits):
    assert torch.equal(logits(built(llama_directory, tiny_tokenizer), ids), logits(tiny_llama, ids))


@pytest.mark.parametrize("how", ["smoke", "random"])
def test_random_weights_have_it_too(llama_directory, tiny_tokenizer, how):
    fields = {"weights": Weights.random} if how == "random" else {"smoke": True}
    model = built(llama_directory, tiny_tokenizer, rope_scaling=scaled("yarn", 2.0), **fields)
    assert model.model.rotary_emb.rope_type == "yarn"


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_anew_it_starts_from_what_was_trained(kind):
    config = AutoConfig.for_model("llama", **SIZES, max_position_embeddings=TRAINED)
    for factor in (2.0, 4.0):
        scale_rope(config, kind=kind, factor=factor, max_length=None)
    assert config.rope_parameters["factor"] == 4.0
    assert config.max_position_embeddings == (4 * TRAINED if kind == "yarn" else TRAINED)


def test_other_parameters_of_the_positions_are_kept():
    """chatglm2 rotates half of each head."""
    architecture = to_root(compose_config(["model=chatglm2"]).config).model.architecture
    config = AutoConfig.for_model(**architecture)
    scale_rope(config, kind="linear", factor=2.0, max_length=None)
    assert config.rope_parameters == {"rope_type": "linear", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "factor": 2.0}


def test_a_sliding_window_is_not_scaled():
    architecture = to_root(compose_config(["model=gemma3"]).config).model.architecture
    config = AutoConfig.for_model(**architecture)
    before = dict(config.rope_parameters["sliding_attention"])
    scale_rope(config, kind="linear", factor=2.0, max_length=None)
    assert config.rope_parameters["sliding_attention"] == before
    assert config.rope_parameters["full_attention"]["factor"] == 2.0


HAS_ROPE = ["llama", "falcon", "chatglm2", "qwen", "phi1_5", "qwen3", "gemma3", "mistral", "glm4", "smollm2", "internlm"]


@pytest.mark.parametrize("option", HAS_ROPE)
def test_every_family_with_rotary_positions(option, tiny_tokenizer, ids, logits):
    root = to_root(compose_config([f"model={option}"]).config)
    plain = build_model(root.model, hub=root.hub, smoke=True, tokenizer=tiny_tokenizer)
    conf = replace(root.model, rope_scaling=scaled("linear", 2.0))
    model = build_model(conf, hub=root.hub, smoke=True, tokenizer=tiny_tokenizer)
    assert context_length(model) == 2 * context_length(plain)
    assert not torch.equal(logits(model, ids), logits(plain, ids))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 4}, "a model of type bloom doesn't have rotary positions"),
        (
            {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "alibi": True},
            "falcon doesn't have",
        ),
        ({"model_type": "baichuan", **SIZES}, "a model of type baichuan doesn't have rotary positions"),
    ],
    ids=["bloom", "falcon with ALiBi", "Baichuan of 13 billion"],
)
def test_without_rotary_positions_it_is_refused(tiny_tokenizer, architecture, message):
    conf = ModelConf(name="x", architecture=architecture, rope_scaling=scaled("linear", 2.0))
    with pytest.raises(ConfigError, match=rf"model.rope_scaling.type: 'linear', but .*{message}.* Leave it null."):
        build_model(conf, hub=HubConf(), smoke=True, tokenizer=tiny_tokenizer)


@pytest.mark.parametrize("option", ["llama3", "phi4_mini"])
def test_positions_trained_scaled_are_not_replaced(option, tiny_tokenizer):
    root = to_root(compose_config([f"model={option}"]).config)
    conf = replace(root.model, rope_scaling=scaled("yarn", 2.0))
    with pytest.raises(ConfigError, match=r"model.rope_scaling.type: 'yarn', but this model was trained with another scaling of positions"):
        build_model(conf, hub=root.hub, smoke=True, tokenizer=tiny_tokenizer)


@pytest.mark.parametrize(
    ("factor", "length", "message"),
    [
        (None, None, "model.rope_scaling.factor: not set, and it can't be computed without model.model_max_length. Set one of them."),
        (
            2.0,
            1025,
            "model.rope_scaling.factor: 2 times the 512 positions of this model is less than model.model_max_length=1025. "
            "Leave it null: then it is 3.",
        ),
    ],
    ids=["neither", "too small"],
)
def test_the_factor_is_missing_or_too_small_for_the_length(factor, length, message):
    config = AutoConfig.for_model("llama", **SIZES, max_position_embeddings=TRAINED)
    with pytest.raises(ConfigError) as error:
        scale_rope(config, kind="linear", factor=factor, max_length=length)
    assert str(error.value) == message


def test_every_architecture_is_covered():
    """Add a new option to one of the tables above, unless an option of the same model_type is there."""
    conf = Path(__file__).parents[3] / "conf" / "model"
    options = [path.stem for path in conf.glob("*.yaml") if path.stem != "auto"]  # its architecture is the checkpoint's
    types = {to_root(compose_config([f"model={name}"]).config).model.architecture["model_type"] for name in options}
    covered = {to_root(compose_config([f"model={name}"]).config).model.architecture["model_type"] for name in HAS_ROPE}
    assert types - covered <= {"bloom", "phi3", "baichuan"}

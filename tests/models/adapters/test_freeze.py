"""The names of the trained parameters."""

from __future__ import annotations

import pytest

from llmmod.errors import ConfigError
from llmmod.models.adapters.setup import freeze_layers
from llmmod.models.loading.structure import decoder_layers

MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def mlp(*layers):
    return {f"model.layers.{n}.mlp.{p}.weight" for n in layers for p in MLP}


def attention(*layers):
    return {f"model.layers.{n}.self_attn.{p}.weight" for n in layers for p in ATTENTION}


def norms(*layers):
    return {f"model.layers.{n}.{p}_layernorm.weight" for n in layers for p in ("input", "post_attention")}


def whole(*layers):
    return mlp(*layers) | attention(*layers) | norms(*layers)


@pytest.fixture
def llama_of_12():
    """Its layers 1, 10 and 11 differ only if whole names are compared."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=12, num_attention_heads=2, head_dim=4)
    return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("count", "modules", "extra", "expected"),
    [
        pytest.param(2, ["all"], [], whole(10, 11), id="the last two"),
        pytest.param(-2, ["all"], [], whole(0, 1), id="the first two"),
        pytest.param(-1, ["all"], [], whole(0), id="layer 0 is not layer 10"),
        pytest.param(12, ["all"], [], whole(*range(12)), id="each"),
        pytest.param(1, ["mlp"], [], mlp(11), id="one module"),
        pytest.param(1, ["mlp", "self_attn"], [], mlp(11) | attention(11), id="two modules"),
        pytest.param(-1, ["q_proj"], [], {"model.layers.0.self_attn.q_proj.weight"}, id="one projection"),
        pytest.param(1, ["mlp"], ["norm"], mlp(11) | {"model.norm.weight"}, id="the last norm without the layernorms"),
        pytest.param(1, ["mlp"], ["lm_head", "embed_tokens"], mlp(11) | {"lm_head.weight", "model.embed_tokens.weight"}, id="ends"),
    ],
)
def test_what_is_trained(llama_of_12, count, modules, extra, expected):
    named = freeze_layers(llama_of_12, count, modules=modules, extra=extra)
    assert set(named) == expected
    assert {name for name, p in llama_of_12.named_parameters() if p.requires_grad} == expected


@pytest.mark.parametrize(
    ("count", "modules", "extra", "message"),
    [
        pytest.param(0, ["all"], [], "finetune.num_layers_trainable: 0 layers would be trained. n > 0: the last n", id="zero"),
        pytest.param(13, ["all"], [], "finetune.num_layers_trainable: 13, but the model has 12 layers. Allowed: -12 to 12", id="many"),
        pytest.param(
            1, ["mpl"], [], "name_module_trainable: 'mpl' is not a module. Did you mean 'mlp'\\? Allowed: all, down_proj", id="typo"
        ),
        pytest.param(1, ["layernorm"], [], "'layernorm' is not a module", id="part of a name"),
        pytest.param(
            1, ["mlp"], ["mlp"], "extra_trainable: 'mlp' is not a module. Allowed: embed_tokens, lm_head, model, norm", id="inside"
        ),
    ],
)
def test_what_does_not_exist(llama_of_12, count, modules, extra, message):
    before = [p.requires_grad for p in llama_of_12.parameters()]
    with pytest.raises(ConfigError, match=message):
        freeze_layers(llama_of_12, count, modules=modules, extra=extra)
    assert [p.requires_grad for p in llama_of_12.parameters()] == before


def test_a_head_that_is_the_embedding_is_trained_by_either_name():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, head_dim=4, tie_word_embeddings=True
    )
    model = LlamaForCausalLM(config)
    freeze_layers(model, 1, modules=["mlp"], extra=["lm_head"])
    assert model.model.embed_tokens.weight.requires_grad


def test_the_layers_of_a_family_with_other_names():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=8, n_layer=3, n_head=2))
    assert decoder_layers(model)[0] == "transformer.h"
    named = freeze_layers(model, 1, modules=["self_attention"])
    assert {name.rsplit(".", 1)[0] for name in named} == {
        "transformer.h.2.self_attention.query_key_value", "transformer.h.2.self_attention.dense",
    }  # fmt: skip

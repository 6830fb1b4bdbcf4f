"""A checkpoint without the layout of its model_type is refused, never loaded as a similar one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmmod.errors import ConfigError
from llmmod.models.families.layouts import family_of

# The fields in which the hub's config.json files differ.
BAICHUAN = {"model_type": "baichuan", "num_attention_heads": 32, "hidden_size": 4096}
CHATGLM = {"model_type": "chatglm", "padded_vocab_size": 65024, "multi_query_group_num": 2, "ffn_hidden_size": 13696}


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        pytest.param(BAICHUAN | {"vocab_size": 64000, "max_position_embeddings": 4096}, "Baichuan-7B", id="Baichuan-7B"),
        pytest.param(
            BAICHUAN | {"vocab_size": 125696, "max_position_embeddings": 4096, "model_max_length": 4096}, "Baichuan2-7B", id="Baichuan2-7B"
        ),
        pytest.param(
            {"model_type": "baichuan", "num_attention_heads": 40, "hidden_size": 5120, "vocab_size": 64000, "model_max_length": 4096},
            "Baichuan-13B",
            id="Baichuan-13B",
        ),
        pytest.param(
            {"model_type": "baichuan", "num_attention_heads": 40, "hidden_size": 5120, "vocab_size": 125696, "model_max_length": 4096},
            "Baichuan2-13B",
            id="Baichuan2-13B",
        ),
        pytest.param(CHATGLM, "ChatGLM2", id="ChatGLM2"),
        pytest.param({"model_type": "qwen", "n_head": 32, "n_embd": 4096, "kv_channels": 128}, "Qwen, the first generation", id="Qwen"),
        pytest.param({"model_type": "internlm"}, "InternLM", id="InternLM"),
        pytest.param({"model_type": "mixformer-sequential"}, "Phi-1.5, before November 2023", id="Phi-1.5"),
    ],
)
def test_families_by_their_configurations(raw, name):
    assert family_of(raw, path="x").name == name


def test_a_native_checkpoint_is_of_no_family():
    assert family_of({"model_type": "llama"}, path="x") is None


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param({"model_type": "chatglm", "inner_hidden_size": 16384, "position_encoding_2d": True}, id="ChatGLM 1"),
        pytest.param(CHATGLM | {"_name_or_path": "THUDM/chatglm3-6b"}, id="ChatGLM3"),
        pytest.param(CHATGLM | {"padded_vocab_size": 151552}, id="GLM-4 in its first layout"),
        pytest.param(BAICHUAN | {"vocab_size": 64000}, id="Baichuan without a field for positions"),
        pytest.param(
            {"model_type": "baichuan", "hidden_size": 5120, "num_attention_heads": 40, "max_position_embeddings": 4096},
            id="Baichuan of 13B's size with rotary positions",
        ),
        pytest.param({"model_type": "qwen", "hidden_size": 64, "num_attention_heads": 4, "kv_channels": 32}, id="Qwen with wide heads"),
        pytest.param({"model_type": "internlm", "rotary": {"type": "yarn"}}, id="InternLM with other positions"),
        pytest.param({"model_type": "mixformer-sequential", "architecture": {"block_cls": "sequential"}}, id="mixformer in sequence"),
    ],
)
def test_its_relatives_are_refused(raw):
    with pytest.raises(ConfigError, match=rf"has model_type {raw['model_type']}, but its config.json is not one of"):
        family_of(raw, path="x")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        pytest.param("chatglm2", {"pre_seq_len": 128}, "config.json says pre_seq_len=128", id="P-Tuning v2"),
        pytest.param("chatglm2", {"quantization_bit": 4}, "says quantization_bit=4", id="packed weights"),
        pytest.param("chatglm2", {"hidden_dropout": 0.1}, "says hidden_dropout=0.1", id="dropout that Glm doesn't have"),
        pytest.param("chatglm2", {"layernorm_epsilon": None}, "config.json doesn't have layernorm_epsilon", id="a field is missing"),
        pytest.param("qwen", {"no_bias": False}, "says no_bias=False", id="biases"),
        pytest.param("qwen", {"tie_word_embeddings": True}, "says tie_word_embeddings=True", id="tied"),
        pytest.param("baichuan2_7b", {"z_loss_weight": 0.1}, "says z_loss_weight=0.1", id="another loss"),
    ],
)
def test_what_the_native_class_has_not_got_is_refused(load, copied, name, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(copied(name, **changes))
    assert error.value.exit_code == 2


def state_of(directory):
    """The weights of a checkpoint by their original names, and the file they are in."""
    safe, older = directory / "model.safetensors", directory / "pytorch_model.bin"
    return (load_file(safe), safe) if safe.exists() else (torch.load(older, weights_only=True), older)


def edited(directory, edit):
    state, file = state_of(directory)
    edit(state)
    if file.suffix == ".bin":
        torch.save(state, file)
    else:
        save_file(state, file, metadata={"format": "pt"})
    return directory


def a_matrix(state):
    """The name of a matrix in the last layer."""
    return max(name for name, tensor in state.items() if ".1." in name and tensor.dim() == 2)


def test_weights_that_the_layout_has_not_got_are_refused(name, load, copied):
    stranger = "transformer.prefix_encoder.embedding.weight"
    directory = edited(copied(name), lambda state: state.update({stranger: torch.zeros(8, 64)}))
    with pytest.raises(ConfigError, match=rf"doesn't have the layout of .* 1 weights are unexpected, among them {stranger}"):
        load(directory)


def test_a_weight_that_a_layer_has_not_got_is_refused(name, load, copied):
    def add(state):
        found = a_matrix(state)
        state[found.replace(".weight", "_of_another_kind.weight")] = torch.zeros(4, 4)

    with pytest.raises(ConfigError, match=r"1 weights are unexpected, among them .*_of_another_kind"):
        load(edited(copied(name), add))


def test_weights_that_are_missing_are_refused(name, load, copied):
    directory = edited(copied(name), lambda state: state.pop(a_matrix(state)))
    with pytest.raises(ConfigError, match=r"lacks \d weights of \w+ForCausalLM, among them model.layers.1.") as error:
        load(directory)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("size", [(-8, 0), (8, 0), (0, 8)], ids=["fewer rows", "more rows", "more columns"])
def test_weights_of_another_size_are_refused(name, load, copied, size):
    def resize(state):
        found = a_matrix(state)
        rows, columns = state[found].shape
        state[found] = torch.zeros(rows + size[0], columns + size[1])

    with pytest.raises(
        ConfigError, match=r"\d weights of '.*' have other sizes than in its config.json, among them model.layers.1"
    ) as error:
        load(edited(copied(name), resize))
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("chatglm2", "transformer.encoder.layers.1.self_attention.query_key_value.weight"),
        ("qwen", "transformer.h.1.attn.c_attn.weight"),
        ("baichuan_7b", "model.layers.1.self_attn.W_pack.weight"),
        ("baichuan_13b", "model.layers.1.self_attn.W_pack.weight"),
    ],
)
@pytest.mark.parametrize("more", [-3, 3])
def test_a_matrix_of_other_sizes_is_not_split(load, copied, name, matrix, more):
    def resize(state):
        rows, columns = state[matrix].shape
        state[matrix] = torch.zeros(rows + more, columns)

    with pytest.raises(ConfigError, match=r"\d weights of '.*' have other sizes than in its config.json, among them model.layers.1"):
        load(edited(copied(name), resize))


def test_a_13b_says_what_attention_it_takes(load):
    with pytest.raises(ConfigError, match=r"model.attn_implementation: 'flex_attention' doesn't support ALiBi"):
        load("baichuan_13b", attn_implementation="flex_attention")


def test_a_layer_less_on_request(load):
    assert len(load("chatglm2", num_hidden_layers=1).model.layers) == 1


def test_remote_code_is_not_run(load, reference, copied):
    directory = copied("qwen")
    (directory / "modeling_qwen.py").write_text("raise SystemExit('this was run')")
    (directory / "configuration_qwen.py").write_text("raise SystemExit('this was run')")
    assert type(load(directory, trust_remote_code=True)).__module__.startswith("transformers.")

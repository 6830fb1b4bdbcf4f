"""Tokenizers from directories."""

from __future__ import annotations

import json

import pytest

from llmmod.errors import ConfigError
from llmmod.models.loading.tokenizer import load_tokenizer, set_pad_token


def test_loaded_encodes_as_saved(tiny_tokenizer, llama_directory):
    text = "The quick brown fox 你好 12"
    assert load_tokenizer(str(llama_directory))(text).input_ids == tiny_tokenizer(text).input_ids


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_a_directory_without_a_tokenizer_is_refused(tmp_path, model_type):
    # For qwen2, transformers creates an empty tokenizer, which encodes every text to an empty list.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ConfigError) as error:
        load_tokenizer(str(tmp_path))
    assert str(error.value) == (
        f"model.pretrained_model_name_or_path: '{tmp_path}' doesn't have a tokenizer. "
        "To use another model's: tokenizer.pretrained_model_name_or_path=/path/to/directory."
    )


def test_an_empty_directory_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a model directory"):
        load_tokenizer(str(tmp_path))


def test_a_damaged_file(llama_directory):
    (llama_directory / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"can't be loaded"):
        load_tokenizer(str(llama_directory))


class Tokens:
    def __init__(self, pad=None, unk=None, eos="</s>"):
        self.pad_token, self.unk_token, self.eos_token = pad, unk, eos

    @property
    def pad_token_id(self):
        return None if self.pad_token is None else 0


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        pytest.param(Tokens(pad="<pad>", unk="<unk>"), "<pad>", id="has one"),
        pytest.param(Tokens(unk="<unk>"), "<unk>", id="unk"),
        pytest.param(Tokens(), "</s>", id="eos"),
    ],
)
def test_a_padding_token_is_one_that_exists(tokenizer, expected):
    set_pad_token(tokenizer)
    assert tokenizer.pad_token == expected

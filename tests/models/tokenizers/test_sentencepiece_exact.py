"""The check finds the difference between an exact and a nearly exact tokenizer."""

from __future__ import annotations

import json

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, normalizers

from llmmod.models.tokenizers.sentencepiece_bpe import is_exact, read_model, rust_tokenizer


def proven(path, change=lambda tokenizer: tokenizer):
    model = read_model(path)
    return is_exact(change(rust_tokenizer(model)), SentencePieceProcessor(model_file=str(path)), model)


@pytest.mark.parametrize("name", ["chatglm2_tiny", "baichuan2_tiny", "internlm", "llama2"])
def test_models_that_are_exact(vocabulary, name):
    assert proven(vocabulary(name))


def strips(tokenizer):
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), tokenizer.normalizer])
    return tokenizer


def folds_width(tokenizer):
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), tokenizer.normalizer])
    return tokenizer


def no_prefix(tokenizer):
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def merges_by_text(tokenizer):
    made = json.loads(tokenizer.to_str())
    made["model"]["merges"].sort()
    return Tokenizer.from_str(json.dumps(made))


@pytest.mark.parametrize("change", [strips, folds_width, no_prefix, merges_by_text])
def test_what_differs_in_one_rule(vocabulary, change):
    assert not proven(vocabulary("chatglm2_tiny"), change)

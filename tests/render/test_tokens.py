from __future__ import annotations

import pytest

from llmmod.config.schema.data import RenderConf
from llmmod.errors import Problem
from llmmod.render.segments import named_tokens, own_beginning, token_id


@pytest.mark.parametrize(("name", "token"), [("eos_token", "</s>"), ("bos_token", "<s>"), ("<|im_end|>", "<|im_end|>"), ("<unk>", "<unk>")])
def test_a_token_is_found_by_its_spelling_or_by_its_place(byte_level, name, token):
    assert token_id(name, byte_level, key="render.sep[0]", render="mine") == byte_level.get_vocab()[token]


def test_an_unknown_token_is_named_with_its_render_its_nearest_and_what_to_do(tokenizer):
    problem = token_id("<|im_ends|>", tokenizer, key="render.sep[0]", render="mine")
    assert isinstance(problem, Problem)
    assert str(problem).startswith("render.sep[0]: render=mine needs the token '<|im_ends|>', which this tokenizer doesn't know.")
    assert "render=auto" in str(problem)
    assert ("Its nearest is '<|im_end|>'." in str(problem)) == tokenizer.is_fast  # the slow ones don't have such a token


def test_a_token_that_the_tokenizer_lacks_in_its_place_is_named(byte_level):
    assert str(token_id("mask_token", byte_level, key="render.response[1]", render="mine")) == (
        "render.response[1]: this tokenizer doesn't have a mask_token. Set tokenizer.kwargs.mask_token='…'."
    )


def test_named_tokens_are_listed_once_and_without_the_tokenizers_own():
    parts = {"prefix": [{"token": "<a>"}, "text"], "empty_prefix": [{"token": "<b>"}], "prompt": [{"token": "<a>"}, "{{query}}"]}
    assert named_tokens(RenderConf(**parts, sep=[{"token": "<c>"}], stop_words=["<b>", "<d>"])) == ["<a>", "<b>", "<c>", "<d>"]


def test_the_beginning_token_counts_only_where_the_tokenizer_writes_it(byte_level, slow_baichuan2):
    assert own_beginning(byte_level) == byte_level.bos_token_id
    assert slow_baichuan2.bos_token_id is not None
    assert own_beginning(slow_baichuan2) is None

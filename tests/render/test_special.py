from __future__ import annotations

from copy import deepcopy

import pytest

from llmmod.render.segments import SpecialTokens


def test_tokens_and_texts_are_split(byte_level):
    end = byte_level.convert_tokens_to_ids("<|im_end|>")
    assert SpecialTokens(byte_level).split("a<|im_end|><|im_end|>b") == ["a", end, end, "b"]


def test_what_a_user_spelt_comes_back_as_text(byte_level):
    special = SpecialTokens(byte_level)
    end = byte_level.convert_tokens_to_ids("<|im_end|>")
    assert special.split(special.hide("a<|im_end|>b</s>") + "<|im_end|>") == ["a<|im_end|>b</s>", end]


@pytest.mark.parametrize(
    ("side", "text", "expected"), [("lstrip", "a \n<x>\n", ["a", "<x>", "\n"]), ("rstrip", "a <x>\n b", ["a ", "<x>", "b"])]
)
def test_a_token_swallows_the_white_space_that_it_swallows_in_one_string(byte_level, side, text, expected):
    from tokenizers import AddedToken

    tokenizer = deepcopy(byte_level)
    tokenizer.add_tokens([AddedToken("<x>", special=True, **{side: True})])
    pieces = SpecialTokens(tokenizer).split(text)
    assert [tokenizer.convert_ids_to_tokens(piece) if isinstance(piece, int) else piece for piece in pieces] == expected
    one_string = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [i for p in pieces for i in ([p] if isinstance(p, int) else tokenizer(p, add_special_tokens=False)["input_ids"])] == one_string

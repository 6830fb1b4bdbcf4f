from __future__ import annotations

import pytest

from llmmod.render.encode import TextEncoder, break_up

TEXTS = ["Hello", "你好！", " two  spaces ", "\nline\n", "a\tb", "😀 emoji", "don't", "1+1=2", ".", " "]


def read(tokenizer, ids):
    """The text of ids; transformers' slow SentencePiece tokenizers don't decode byte pieces and strip spaces."""
    return tokenizer.decode(ids) if tokenizer.is_fast else tokenizer.sp_model.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_the_first_text_is_encoded_as_the_tokenizer_does(tokenizer, text):
    assert TextEncoder(tokenizer).encode([text]) == [tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_continues_another_reads_the_same_in_between(tokenizer, text):
    encoder = TextEncoder(tokenizer)
    head = encoder.encode(["Hi,"])[0]
    tail = encoder.encode([text], continuing=encoder.continues("Hi,"))[0]
    assert read(tokenizer, head + tail) == "Hi," + text


def test_chatglm2s_dummy_prefix_stands_at_the_beginning_alone(slow_chatglm2):
    # In the official vectors, too, the ids of "你好" alone and in a sentence differ: [36474, 54591] and [39701].
    encoder = TextEncoder(slow_chatglm2)
    alone, within = encoder.encode(["你好"])[0], encoder.encode(["你好"], continuing=True)[0]
    assert slow_chatglm2.convert_ids_to_tokens(alone) == ["▁", "你好"]
    assert slow_chatglm2.convert_ids_to_tokens(within) == ["你好"]


@pytest.mark.parametrize("name", ["dummy_prefix", "dummy_prefix_first", "byte_level"])
def test_a_text_after_a_token_is_encoded_as_in_one_string_with_it(request, name):
    tokenizer = request.getfixturevalue(name)
    encoder = TextEncoder(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = encoder.encode(["Hello"], continuing=encoder.continues(end))[0]
    assert tokenizer("<|im_end|>Hello", add_special_tokens=False)["input_ids"] == [end, *ids]


@pytest.mark.parametrize("text", ["</s>", "a</s>b<s>", "<|im_end|>", "x<|im_start|>y"])
def test_no_text_becomes_a_special_token(tokenizer, text):
    encoder = TextEncoder(tokenizer)
    for continuing in (False, True):
        ids = encoder.encode([text], continuing=continuing)[0]
        assert not set(ids) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
        assert read(tokenizer, ids) == text


def test_a_special_piece_of_the_model_is_broken_up(slow_baichuan2):
    # SentencePiece itself encodes a user-defined piece as one token, whatever transformers' settings for special tokens are.
    from copy import copy

    special = copy(slow_baichuan2)
    special.add_special_tokens({"extra_special_tokens": ["<eoa>"]})
    end = special.convert_tokens_to_ids("<eoa>")
    assert special("a<eoa>b", add_special_tokens=False, split_special_tokens=True)["input_ids"].count(end) == 1
    ids = TextEncoder(special).encode(["a<eoa>b"])[0]
    assert end not in ids
    assert special.decode(ids) == "a<eoa>b"


def test_pieces_that_a_text_can_spell_are_found(slow_baichuan2, byte_level):
    assert TextEncoder(slow_baichuan2).tokens_in_text(["<eoa>", "</s>"]) == ["<eoa>"]
    assert TextEncoder(byte_level).tokens_in_text(["<eoa>", "</s>", "a"]) == []


def test_break_up_breaks_inside_of_every_name():
    assert break_up("a<x>b<y><x>", ["<x>", "<y>"]) == ["a<", "x>b<", "y><", "x>"]


def test_the_tokenizers_settings_are_left_as_they_were(byte_level):
    backend = byte_level.backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    try:
        assert len(TextEncoder(byte_level).encode(["Hello, what can I do for you?"])[0]) > 8
        assert backend.truncation["max_length"] == 3
        assert backend.padding["length"] == 8
        assert not backend.encode_special_tokens
    finally:
        backend.no_truncation()
        backend.no_padding()

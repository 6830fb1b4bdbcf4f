"""Tokens are shown as whole characters or else bytes, special tokens by name, and invisible characters are marked."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from llmmod.steps.preview.examples import TokenTexts, visible


def encoded(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def shown(tokenizer, ids, labels=None):
    return TokenTexts(tokenizer).shown(ids, ids if labels is None else labels)


@pytest.mark.parametrize("text", ["Hello, world", "  two  spaces ", "你好,龘。", "😀 ok", "<script>&"])
def test_pieces_make_the_text_and_keep_every_token(tiny_tokenizer, text):
    ids = encoded(tiny_tokenizer, text)
    pieces = shown(tiny_tokenizer, ids)
    assert "".join(piece.text for piece in pieces) == text
    assert [token for piece in pieces for token in piece.ids] == ids
    assert [piece.at for piece in pieces] == [sum(len(p.ids) for p in pieces[:n]) for n in range(len(pieces))]


def test_a_character_of_several_tokens_is_one_piece(tiny_tokenizer):
    ids = encoded(tiny_tokenizer, "😀")  # F0 9F 98 80, one token each in this small vocabulary
    assert len(ids) == 4
    (piece,) = shown(tiny_tokenizer, ids)
    assert (piece.text, piece.ids) == ("😀", tuple(ids))


def test_half_a_character_is_shown_by_its_bytes(tiny_tokenizer):
    ids = encoded(tiny_tokenizer, "a😀")[:-1]
    assert [piece.text for piece in shown(tiny_tokenizer, ids)] == ["a", "⟨F0⟩", "⟨9F⟩", "⟨98⟩"]


def test_a_character_is_not_put_together_across_the_mask(tiny_tokenizer):
    ids = encoded(tiny_tokenizer, "😀")
    pieces = shown(tiny_tokenizer, ids, [-100, -100, *ids[2:]])
    assert [(piece.text, piece.trained) for piece in pieces] == [("⟨F0⟩", False), ("⟨9F⟩", False), ("⟨98⟩", True), ("⟨80⟩", True)]


def test_special_tokens_are_named_and_texts_that_spell_them_are_not_special(tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    text = tiny_tokenizer.encode("<|endoftext|>", add_special_tokens=False, split_special_tokens=True)
    pieces = shown(tiny_tokenizer, [*text, end])
    assert end not in text
    assert [piece.special for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].text == "<|endoftext|>"


def test_another_label_than_the_token(tiny_tokenizer):
    ids = encoded(tiny_tokenizer, "ab")
    piece = shown(tiny_tokenizer, ids, [tiny_tokenizer.eos_token_id, *ids[1:]])[0]
    assert (piece.trained, piece.label) == (True, "<|endoftext|>")
    assert piece.hint.endswith("position 0 · trained as <|endoftext|>")


def test_a_space_that_begins_a_sentencepiece_token_is_kept():
    vocabulary = {"<unk>": 0, "▁a": 1, "▁b": 2, "a": 3, "<0xE4>": 4, "<0xBD>": 5, "<0xA0>": 6, "▁": 7}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1, right=0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert [piece.text for piece in shown(tokenizer, [1, 2, 4, 5, 6, 4])] == [" a", " b", "你", "⟨E4⟩"]


def test_invisible_characters_are_shown():
    assert visible("a\x1b[31m\x00\tb\nc\u200bd\u202ee\ufeff") == "a␛[31m␀⇥\tb↵\nc⟨U+200B⟩d⟨U+202E⟩e⟨U+FEFF⟩"
    assert visible("👨\u200d👩 naïve 你好") == "👨\u200d👩 naïve 你好"

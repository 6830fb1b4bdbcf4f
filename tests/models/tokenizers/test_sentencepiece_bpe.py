"""SentencePiece models as Rust tokenizers, against sentencepiece."""

from __future__ import annotations

import random

import pytest
from sentencepiece import SentencePieceProcessor

from llmmod.models.tokenizers.sentencepiece_bpe import read_model, rust_tokenizer

MODELS = ["chatglm2_tiny", "baichuan2_tiny", "internlm", "llama2"]
_ALPHABET = [
    *"  \n\t\r aabcdeABC0129.,;'\"()[]{}<>/_-=é\u3000\u00a0\u200b▁你好世界人工智能，。🤖\ufeffп안\0\x01",
    " " * 17,
    " " * 33,
    "=" * 9,
    "the",
    "ing",
]


@pytest.fixture(scope="module", params=MODELS)
def both(request, vocabulary):
    """A model's Rust tokenizer, and sentencepiece with the same file."""
    path = vocabulary(request.param)
    return rust_tokenizer(read_model(path)), SentencePieceProcessor(model_file=str(path))


def test_ids_and_texts_are_sentencepieces(both):
    rust, processor = both
    chosen = random.Random(1)
    pieces = [processor.id_to_piece(chosen.randrange(processor.get_piece_size())).replace("▁", " ") for _ in range(200)]
    texts = ["".join(chosen.choices(_ALPHABET + pieces, k=chosen.randint(1, 40))) for _ in range(3000)]
    expected = processor.encode(texts)
    assert [encoding.ids for encoding in rust.encode_batch(texts, add_special_tokens=False)] == expected
    assert rust.decode_batch(expected) == processor.decode(expected)


def test_runs_of_spaces_grow_from_the_left(vocabulary):
    # LLaMA-2's pieces of 2 to 16 spaces have the same score. With the merges in any other order, the 20 spaces become 8 + 12.
    rust = rust_tokenizer(read_model(vocabulary("llama2")))
    assert [len(token) for token in rust.encode("x" + " " * 21 + "x").tokens] == [2, 16, 4, 2]


def test_nul_is_a_byte(vocabulary):
    rust = rust_tokenizer(read_model(vocabulary("internlm")))
    assert rust.encode("\0").tokens == ["<0x00>"]  # though piece 354 is NUL
    assert rust.token_to_id("\0\0") == 354

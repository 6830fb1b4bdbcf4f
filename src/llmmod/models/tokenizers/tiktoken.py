"""Qwen's vocabulary, a file of tiktoken's, as a Rust tokenizer."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, normalizers
from transformers.convert_slow_tokenizer import TikTokenConverter

# PAT_STR and SPECIAL_TOKENS of tokenization_qwen.py.
_PATTERN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
_EXTRA = [f"<|extra_{number}|>" for number in range(205)]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_EXTRA]


def rust_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of qwen.tiktoken; its special tokens follow the vocabulary in the order of `SPECIAL`.

    Raises:
        ValueError: the file is none of tiktoken's.
    """
    tokenizer = TikTokenConverter(vocab_file=str(file), pattern=_PATTERN, extra_special_tokens=SPECIAL).converted()
    tokenizer.normalizer = normalizers.NFC()  # as _tokenize of tokenization_qwen.py does before anything else
    return tokenizer

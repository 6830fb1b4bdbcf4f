"""Whether a Rust tokenizer gives SentencePiece's ids: tried on texts that tell the rules of normalizers and of BPE apart.

The files of some models can't be had where this was written, and what a file asks for is seen in full only by encoding with it.
"""

from __future__ import annotations

import random
from typing import Any

from tokenizers import Tokenizer

from llmmod.models.tokenizers.model_file import BYTE, USER_DEFINED, Model

_TEXTS = (
    "", " ", "   ", "\n", "\t", "\r\n", " \n ", "a", " a", "a ", "  a  b   c  ", "\n    print('x')\t# y\n\n\n",
    "\u3000全角\u3000", "\u00a0a\u00a0", "你好，世界。", "１２３ＡＢＣ：？", "ﬁ ½ ²", "cafe\u0301 é", "𠀀龘", "안녕 สวัสดี مرحبا",
    "👨\u200d👩\u200d👧 😀", "\u200b\ufeff", "\x00a\x00", "\x01\x7f", "\ue000", "▁▁ ▁", "<s> </s> <unk> <0x0A>", "12345+234=0.5",
    "https://example.com/?a=b&c", "I'm sure we'll see; they've…", "a" * 12 + "=" * 20 + "-" * 33,
)  # fmt: skip
_SPACES = range(2, 70)  # runs as long as code is indented
_MIXED, _PIECES = 300, 8  # texts of so many pieces


def is_exact(tokenizer: Tokenizer, processor: Any, model: Model) -> bool:
    """Whether the two agree on every probe.

    Args:
        tokenizer: the Rust one.
        processor: a sentencepiece.SentencePieceProcessor of the same file.
        model: what the file says.
    """
    texts = probes(model)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)] == processor.encode(texts)


def probes(model: Model) -> list[str]:
    """Texts of many scripts and all kinds of white space, user-defined pieces in every place, and pieces in an order drawn at random."""
    runs = [f"a{' ' * count}{after}" for count in _SPACES for after in ("b", "==", "")]
    spelt = [text for piece in model.texts(USER_DEFINED)[:20] for text in (piece, f"{piece}a", f" {piece} ", f"a {piece}b{piece}{piece}")]
    drawn = random.Random(0).choices([piece.text.replace("▁", " ") for piece in model.pieces if piece.type != BYTE], k=_MIXED * _PIECES)
    mixed = ["".join(drawn[at : at + _PIECES]) for at in range(0, len(drawn), _PIECES)]
    return [*_TEXTS, *runs, *spelt, *mixed]

"""A SentencePiece BPE model as a Rust tokenizer, if that is exact.

Most rules have an equivalent: SentencePiece merges the neighbours whose union has the best score, the Rust library the pair that is first
in a list; both replace spaces by `▁`, and a character without a piece by its bytes. Some rules don't have one (removing extra white space,
user-defined pieces after a dummy prefix), and only encoding shows all rules of a file: `is_exact` compares the ids of texts for which the
rules differ.

A tokenizer.model is SentencePiece's ModelProto, read here without protobuf: protobuf allows one definition of a message in a process, and
sentencepiece and transformers both have one, so the import of the second fails. Only a few fields of a simple format are needed
(protobuf.dev, "Encoding").
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

BPE = 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, USER_DEFINED, BYTE = 1, 2, 4, 6  # ModelProto.SentencePiece.Type
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # wire types
_NUL = "\0"

_TEXTS = (
    "", " ", "   ", "\n", "\t", "\r\n", " \n ", "a", " a", "a ", "  a  b   c  ", "\n    print('x')\t# y\n\n\n",
    "\u3000全角\u3000", "\u00a0a\u00a0", "你好，世界。", "１２３ＡＢＣ：？", "ﬁ ½ ²", "cafe\u0301 é", "𠀀龘", "안녕 สวัสดี مرحبا",
    "👨\u200d👩\u200d👧 😀", "\u200b\ufeff", "\x00a\x00", "\x01\x7f", "\ue000", "▁▁ ▁", "<s> </s> <unk> <0x0A>", "12345+234=0.5",
    "https://example.com/?a=b&c", "I'm sure we'll see; they've…", "a" * 12 + "=" * 20 + "-" * 33,
)  # fmt: skip
_SPACES = range(2, 70)  # runs as in indented code
_MIXED, _PIECES = 300, 8  # number of texts, and of pieces in each


class Piece(NamedTuple):
    """An entry of the vocabulary."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """The contents of a tokenizer.model.

    Args:
        pieces: by id.
        type: `BPE`, or another.
        byte_fallback: whether a character without a piece becomes its bytes.
        dummy_prefix: whether a text gets a space in front.
    """

    pieces: tuple[Piece, ...]
    type: int
    byte_fallback: bool
    dummy_prefix: bool

    def texts(self, type_: int) -> list[str]:
        """Pieces of one type."""
        return [piece.text for piece in self.pieces if piece.type == type_]


def read_model(file: Path) -> SentencePieceModel:
    """The model in a file.

    Raises:
        ValueError: it isn't a SentencePiece model.
    """
    try:
        fields = list(_fields(file.read_bytes()))
        pieces = tuple(_piece(value) for number, value in fields if number == 1)
        trainer, normalizer = (dict(_fields(b"".join(value for n, value in fields if n == number))) for number in (2, 3))
    except (IndexError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{file.name} is not a SentencePiece model") from error
    if not pieces:
        raise ValueError(f"{file.name} is not a SentencePiece model: it doesn't have pieces")
    fallback, prefix = bool(trainer.get(35, 0)), bool(normalizer.get(3, 1))
    return SentencePieceModel(pieces, type=trainer.get(3, 1), byte_fallback=fallback, dummy_prefix=prefix)


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return Piece(fields.get(1, b"").decode("utf-8"), score, fields.get(3, NORMAL))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message: an int, or the bytes of anything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _LENGTH:
            length, at = _varint(data, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise TypeError(f"{kind} is not a wire type")
        if at + length > len(data):
            raise IndexError(f"a field of {length} bytes ends after the end of the file")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number with seven bits per byte, the lowest first, and the start of the next field."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def rust_tokenizer(model: SentencePieceModel) -> Tokenizer:
    """The tokenizer of a BPE model, without special tokens."""
    unknown = next(iter(model.texts(UNKNOWN)), None)
    # The piece of NUL is never used: SentencePiece encodes the byte instead (InternLM's 354).
    vocabulary = {_NUL * 2 if piece.text == _NUL else piece.text: index for index, piece in enumerate(model.pieces)}
    bpe = models.BPE(vocab=vocabulary, merges=_merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    prefix = [normalizers.Prepend("▁")] if model.dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    # Matched after normalization, as in SentencePiece: they may contain spaces.
    tokenizer.add_tokens([AddedToken(piece, normalized=True, special=False) for piece in model.texts(USER_DEFINED)])
    return tokenizer


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Pairs of pieces whose union is a piece, the best score first, as in SentencePiece's bpe_model.cc.

    Among equal scores it merges the leftmost pair, so that a piece there grows as far as possible. The Rust library does the same if pairs
    with a longer left piece are first: LLaMA-2's runs of up to 16 spaces all have the same score.
    """
    score = {text: score for text, score, type_ in model.pieces if type_ == NORMAL and text != _NUL}
    pairs = [
        (-best, -at, at - len(whole), whole[:at], whole[at:])
        for whole, best in score.items()
        for at in range(1, len(whole))
        if whole[:at] in score and whole[at:] in score
    ]
    return [(left, right) for *_, left, right in sorted(pairs)]


def is_exact(tokenizer: Tokenizer, processor: Any, model: SentencePieceModel) -> bool:
    """Whether the two agree on every probe.

    Args:
        tokenizer: the Rust one.
        processor: a sentencepiece.SentencePieceProcessor of the same file.
        model: of the file.
    """
    texts = probes(model)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)] == processor.encode(texts)


def probes(model: SentencePieceModel) -> list[str]:
    """Texts of many scripts and all kinds of white space, user-defined pieces in every place, and pieces in random order."""
    runs = [f"a{' ' * count}{after}" for count in _SPACES for after in ("b", "==", "")]
    spelt = [text for piece in model.texts(USER_DEFINED)[:20] for text in (piece, f"{piece}a", f" {piece} ", f"a {piece}b{piece}{piece}")]
    drawn = random.Random(0).choices([piece.text.replace("▁", " ") for piece in model.pieces if piece.type != BYTE], k=_MIXED * _PIECES)
    mixed = ["".join(drawn[at : at + _PIECES]) for at in range(0, len(drawn), _PIECES)]
    return [*_TEXTS, *runs, *spelt, *mixed]

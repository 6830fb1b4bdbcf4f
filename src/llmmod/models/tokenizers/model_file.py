"""A tokenizer.model as it is written: SentencePiece's ModelProto, read without protobuf.

protobuf takes one definition of a message in a process, and sentencepiece and transformers each bring their own: whichever is imported
second fails. What is needed here is few fields of a simple format (protobuf.dev, "Encoding").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

BPE = 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, USER_DEFINED, BYTE = 1, 2, 4, 6  # ModelProto.SentencePiece.Type
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # wire types


class Piece(NamedTuple):
    """An entry of the vocabulary."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class Model:
    """What a tokenizer.model says.

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


def read_model(file: Path) -> Model:
    """The model in a file.

    Raises:
        ValueError: it holds none.
    """
    try:
        fields = list(_fields(file.read_bytes()))
        pieces = tuple(_piece(value) for number, value in fields if number == 1)
        trainer, normalizer = (dict(_fields(b"".join(value for n, value in fields if n == number))) for number in (2, 3))
    except (IndexError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{file.name} is no SentencePiece model") from error
    if not pieces:
        raise ValueError(f"{file.name} is no SentencePiece model: it has no pieces")
    return Model(pieces, type=trainer.get(3, 1), byte_fallback=bool(trainer.get(35, 0)), dummy_prefix=bool(normalizer.get(3, 1)))


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
            raise TypeError(f"no wire type {kind}")
        if at + length > len(data):
            raise IndexError(f"a field of {length} bytes goes beyond the end")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where the next field begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at

"""What the tokenizer code did that came with 2023's checkpoints, as data, and how a checkpoint of each is recognised.

Sources: tokenization_chatglm.py (THUDM/chatglm2-6b), tokenization_baichuan.py (baichuan-inc), tokenization_internlm.py (internlm),
tokenization_qwen.py (Qwen), tokenization_llama.py (transformers 4.33), all as they worked under transformers 4.33.

A tokenizer.model as it is written: SentencePiece's ModelProto, read without protobuf.

protobuf takes one definition of a message in a process, and sentencepiece and transformers each bring their own: whichever is imported
second fails. What is needed here is few fields of a simple format (protobuf.dev, "Encoding").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

MARK = "original_tokenizer"  # in tokenizer_config.json of a directory that llmmod saved and stock transformers can't read exactly


@dataclass(frozen=True)
class Original:
    """A tokenizer's ways.

    Args:
        name: for messages, and under `MARK`.
        classes: names of its class in tokenizer_config.json.
        model_types: in config.json, where there is no tokenizer_config.json.
        file: its vocabulary.
        own: its special tokens, unless tokenizer_config.json has others.
        adds_bos: whether a text begins with bos, unless tokenizer_config.json says otherwise.
        swallows_spaces: whether special tokens in a text swallow the white space beside them.
        appended: special tokens that follow the vocabulary's pieces.
        prefix: those of them that a text begins with. A pair of texts then ends with eos.
        arguments: fields of the transformers class.
    """

    name: str
    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    file: str = "tokenizer.model"
    own: Mapping[str, str] = field(default_factory=lambda: {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    adds_bos: bool = False
    swallows_spaces: bool = False
    appended: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)


CHATGLM2 = Original(
    "ChatGLM2",
    classes=("ChatGLMTokenizer",),
    model_types=("chatglm",),
    own={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"},
    appended=("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
    prefix=("[gMASK]", "sop"),
    # It never reads a special token in a text; were "eop" one, "people" would be broken up.
    arguments={"padding_side": "left", "split_special_tokens": True},
)
BAICHUAN = Original("Baichuan", classes=("BaichuanTokenizer", "BaiChuanTokenizer"), model_types=("baichuan",))
INTERNLM = Original("InternLM", classes=("InternLMTokenizer",), model_types=("internlm",), adds_bos=True, swallows_spaces=True)
QWEN = Original(
    "Qwen",
    classes=("QWenTokenizer",),
    model_types=("qwen",),
    file="qwen.tiktoken",
    own={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
)
LLAMA = Original("LLaMA", classes=("LlamaTokenizer", "LlamaTokenizerFast"), model_types=("llama",), adds_bos=True)

ORIGINALS = (CHATGLM2, BAICHUAN, INTERNLM, QWEN, LLAMA)


def original_of(tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]) -> Original | None:
    """The tokenizer that a checkpoint was made with, None where it is none of 2023's.

    Args:
        tokenizer_config: its tokenizer_config.json, empty where there is none.
        config: its config.json, likewise.
    """
    marked = tokenizer_config.get(MARK)
    named = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    for original in ORIGINALS:
        by_type = named is None and config.get("model_type") in original.model_types
        if marked == original.name or (marked is None and (named in original.classes or by_type)):
            return original
    return None


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

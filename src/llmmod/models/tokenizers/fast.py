"""A SentencePiece BPE model as a Rust tokenizer.

The two work alike where the rules are put in the other's terms: SentencePiece merges the neighbours whose union has the best score, the
Rust library those whose pair comes first in a list; spaces become `▁` in both, a character without a piece its bytes. Whether that was
all, `proof` finds out: some rules can't be put so (extra white space removed, user-defined pieces behind a dummy prefix).

Whether a Rust tokenizer gives SentencePiece's ids: tried on texts that tell the rules of normalizers and of BPE apart.

The files of some models can't be had where this was written, and what a file asks for is seen in full only by encoding with it.

Qwen's vocabulary, a file of tiktoken's, as a Rust tokenizer.

SentencePiece itself as a transformers tokenizer: for models whose rules the Rust library hasn't got.

Exact for every model, and some twenty times slower. Stock transformers doesn't know this class: from a directory that it saved, it
takes the nearest that it has, which splits texts alike but leaves out what begins them, or worse.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from llmmod.models.tokenizers.originals import BYTE, MARK, NORMAL, UNKNOWN, USER_DEFINED, Model
from llmmod.upstream import require_upstream

require_upstream(__name__)

_NUL = "\0"


def rust_tokenizer(model: Model) -> Tokenizer:
    """The tokenizer of a BPE model: ids of texts, without special tokens."""
    unknown = next(iter(model.texts(UNKNOWN)), None)
    vocabulary = {_name(piece.text): index for index, piece in enumerate(model.pieces)}
    bpe = models.BPE(vocab=vocabulary, merges=_merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    prefix = [normalizers.Prepend("▁")] if model.dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    # Matched behind the normalizer, as SentencePiece does: they may have spaces in them.
    tokenizer.add_tokens([AddedToken(piece, normalized=True, special=False) for piece in model.texts(USER_DEFINED)])
    return tokenizer


def _name(piece: str) -> str:
    """A piece as the Rust vocabulary has it. That of NUL is none of any text: SentencePiece takes the byte instead (InternLM's 354)."""
    return _NUL * 2 if piece == _NUL else piece


def _merges(model: Model) -> list[tuple[str, str]]:
    """Pairs of pieces whose union is a piece, the best score first, as SentencePiece's bpe_model.cc chooses.

    Among equal scores it takes the pair furthest to the left, so that a piece grows there until it can't. The Rust library does the same
    where pairs with a longer left piece come first: LLaMA-2's runs of up to 16 spaces all have the same score.
    """
    score = {text: score for text, score, type_ in model.pieces if type_ == NORMAL and text != _NUL}
    pairs = [
        (-best, -at, at - len(whole), whole[:at], whole[at:])
        for whole, best in score.items()
        for at in range(1, len(whole))
        if whole[:at] in score and whole[at:] in score
    ]
    return [(left, right) for *_, left, right in sorted(pairs)]


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


# PAT_STR and SPECIAL_TOKENS of tokenization_qwen.py.
_PATTERN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
_EXTRA = [f"<|extra_{number}|>" for number in range(205)]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_EXTRA]


def tiktoken_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of qwen.tiktoken; its special tokens follow the vocabulary in the order of `SPECIAL`.

    Raises:
        ValueError: the file is none of tiktoken's.
    """
    tokenizer = TikTokenConverter(vocab_file=str(file), pattern=_PATTERN, extra_special_tokens=SPECIAL).converted()
    tokenizer.normalizer = normalizers.NFC()  # as _tokenize of tokenization_qwen.py does before anything else
    return tokenizer


log = logging.getLogger(__name__)


class SentencePieceTokenizer(SentencePieceBackend):  # type: ignore[misc]
    """A tokenizer.model with the original's special tokens.

    Args:
        prefix: tokens that a text begins with.
        suffix: tokens that it ends with.
        arguments: SentencePieceBackend's, and `original_tokenizer`, which is saved.
    """

    def __init__(self, *, prefix: Sequence[str] = (), suffix: Sequence[str] = (), **arguments: Any) -> None:
        self.prefix, self.suffix = tuple(prefix), tuple(suffix)
        super().__init__(**arguments, legacy=True)

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        """A text's ids between prefix and suffix. Of a pair, LLaMA wraps both; ChatGLM2 has its prefix before the first, eos at the end."""
        prefix, suffix = (list(self.convert_tokens_to_ids(tokens)) for tokens in (self.prefix, self.suffix))
        first = [*prefix, *token_ids_0, *suffix]
        if token_ids_1 is None:
            return first
        if len(prefix) > 1:
            return [*first, *token_ids_1, self.eos_token_id]
        return [*first, *prefix, *token_ids_1, *suffix]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of some tokens; special ones stand in it as they are spelt."""
        added = self._added_tokens_encoder
        runs = itertools.groupby(tokens, key=lambda token: token in added)
        return "".join("".join(run) if spelt else self.sp_model.decode_pieces(list(run)) for spelt, run in runs)

    def save_pretrained(self, save_directory: Any, **arguments: Any) -> tuple[str, ...]:
        """What PreTrainedTokenizer saves, under the name of the class of transformers that comes nearest."""
        saved: tuple[str, ...] = super().save_pretrained(save_directory, **arguments)
        config = Path(save_directory) / "tokenizer_config.json"
        fields = json.loads(config.read_text(encoding="utf-8"))
        fields["tokenizer_class"] = SentencePieceBackend.__name__
        config.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        log.warning("%s: llmmod reads this tokenizer as it was (%s); stock transformers has no class for it.", save_directory, fields[MARK])
        return saved

"""The rules of the tokenizer code in 2023's checkpoints, as data, and how to recognise such a checkpoint.

Two need code: Qwen's vocabulary is a file of tiktoken, and a SentencePiece model whose rules the Rust library doesn't support is run with
SentencePiece itself, about twenty times slower. Stock transformers doesn't have that class: for a directory saved by it, it uses the
nearest class, which splits texts in the same way but leaves out their first tokens, or differs more.

Sources: tokenization_chatglm.py (THUDM/chatglm2-6b), tokenization_baichuan.py (baichuan-inc), tokenization_internlm.py (internlm),
tokenization_qwen.py (Qwen), tokenization_llama.py (transformers 4.33), all as they worked under transformers 4.33.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from llmmod.upstream import require_upstream

require_upstream(__name__)

log = logging.getLogger(__name__)

MARK = "original_tokenizer"  # in tokenizer_config.json of a directory saved by llmmod that stock transformers can't read exactly
# PAT_STR and SPECIAL_TOKENS of tokenization_qwen.py.
_QWEN_PATTERN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
_QWEN_EXTRA = [f"<|extra_{number}|>" for number in range(205)]
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_QWEN_EXTRA]


@dataclass(frozen=True)
class Original:
    """A tokenizer's rules.

    Args:
        name: for messages, and under `MARK`.
        classes: names of its class in tokenizer_config.json.
        model_types: in config.json, for checkpoints without tokenizer_config.json.
        file: its vocabulary.
        own: its special tokens, unless tokenizer_config.json has others.
        adds_bos: whether a text begins with bos, unless tokenizer_config.json has another value.
        strips_spaces: whether special tokens in a text remove adjacent white space.
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
    strips_spaces: bool = False
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
    # It doesn't match special tokens in a text; otherwise "eop" would split "people".
    arguments={"padding_side": "left", "split_special_tokens": True},
)
BAICHUAN = Original("Baichuan", classes=("BaichuanTokenizer", "BaiChuanTokenizer"), model_types=("baichuan",))
INTERNLM = Original("InternLM", classes=("InternLMTokenizer",), model_types=("internlm",), adds_bos=True, strips_spaces=True)
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
    """The rules of a checkpoint's tokenizer of 2023, or None.

    Args:
        tokenizer_config: its tokenizer_config.json, or empty.
        config: its config.json, or empty.
    """
    marked = tokenizer_config.get(MARK)
    named = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    for original in ORIGINALS:
        by_type = named is None and config.get("model_type") in original.model_types
        if marked == original.name or (marked is None and (named in original.classes or by_type)):
            return original
    return None


def tiktoken_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of qwen.tiktoken; its special tokens follow the vocabulary in the order of `QWEN_SPECIAL`.

    Raises:
        ValueError: it isn't a file of tiktoken.
    """
    tokenizer = TikTokenConverter(vocab_file=str(file), pattern=_QWEN_PATTERN, extra_special_tokens=QWEN_SPECIAL).converted()
    tokenizer.normalizer = normalizers.NFC()  # as _tokenize of tokenization_qwen.py does before anything else
    return tokenizer


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
        """A text's ids between prefix and suffix. For a pair, LLaMA wraps both; ChatGLM2 puts its prefix first and eos last."""
        prefix, suffix = (list(self.convert_tokens_to_ids(tokens)) for tokens in (self.prefix, self.suffix))
        first = [*prefix, *token_ids_0, *suffix]
        if token_ids_1 is None:
            return first
        if len(prefix) > 1:
            return [*first, *token_ids_1, self.eos_token_id]
        return [*first, *prefix, *token_ids_1, *suffix]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of some tokens, with special tokens as written."""
        added = self._added_tokens_encoder
        runs = itertools.groupby(tokens, key=lambda token: token in added)
        return "".join("".join(run) if spelt else self.sp_model.decode_pieces(list(run)) for spelt, run in runs)

    def save_pretrained(self, save_directory: Any, **arguments: Any) -> tuple[str, ...]:
        """Save the files of PreTrainedTokenizer, with the name of the nearest class of transformers."""
        saved: tuple[str, ...] = super().save_pretrained(save_directory, **arguments)
        config = Path(save_directory) / "tokenizer_config.json"
        fields = json.loads(config.read_text(encoding="utf-8"))
        fields["tokenizer_class"] = SentencePieceBackend.__name__
        config.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        text = "%s: llmmod reads this tokenizer exactly (%s); stock transformers doesn't have a class for it."
        log.warning(text, save_directory, fields[MARK])
        return saved

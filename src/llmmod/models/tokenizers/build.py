"""From a vocabulary file and the original's ways to a transformers tokenizer: a fast one where it is exact, else SentencePiece itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SetMinLogLevel
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from llmmod.models.tokenizers import tiktoken
from llmmod.models.tokenizers.model_file import BPE, read_model
from llmmod.models.tokenizers.originals import MARK, QWEN, Original
from llmmod.models.tokenizers.pieces import rust_tokenizer
from llmmod.models.tokenizers.proof import is_exact
from llmmod.models.tokenizers.slow import SentencePieceTokenizer

log = logging.getLogger(__name__)

OWN = ("bos_token", "eos_token", "unk_token", "pad_token")


def tokenizer_of(original: Original, file: Path, fields: Mapping[str, Any]) -> Any:
    """The tokenizer of a vocabulary.

    Args:
        original: whose ways it has.
        file: `original.file` of a checkpoint.
        fields: of the transformers class, those of `OWN` and `add_bos_token` among them.

    Raises:
        ValueError: the file can't be read.
    """
    if original.prefix or original is QWEN:  # given, these would make transformers write a post-processor of its own
        fields = {name: value for name, value in fields.items() if name not in ("add_bos_token", "add_eos_token")}
    if original is QWEN:
        return _of_tiktoken(file, dict(fields))
    model = read_model(file)
    if model.type == BPE and model.byte_fallback:
        rust = rust_tokenizer(model)
        SetMinLogLevel(2)  # errors; it would warn of InternLM's piece for NUL, on standard error
        if is_exact(rust, SentencePieceProcessor(model_file=str(file)), model):
            return _fast(original, rust, dict(fields))
    log.warning("%s: the fast tokenizer can't be told its rules exactly, so SentencePiece itself is taken, which is slower.", file)
    return _slow(original, file, dict(fields))


def _of_tiktoken(file: Path, fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    own = {fields.get(name) for name in OWN}
    extra = [token for token in tiktoken.SPECIAL if token not in own]
    return PreTrainedTokenizerFast(tokenizer_object=tiktoken.rust_tokenizer(file), extra_special_tokens=extra, **fields)


def _fast(original: Original, rust: Tokenizer, fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    rust.add_special_tokens([*_special(original, fields).values(), *_appended(original)])
    if not original.prefix:
        return PreTrainedTokenizerFast(tokenizer_object=rust, **fields)
    prefix, eos = " ".join(original.prefix), fields["eos_token"]
    ids = [(name, rust.token_to_id(name)) for name in (*original.prefix, eos)]
    rust.post_processor = processors.TemplateProcessing(single=f"{prefix} $A", pair=f"{prefix} $A $B {eos}", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=rust, extra_special_tokens=list(original.appended), **fields)


def _slow(original: Original, file: Path, fields: dict[str, Any]) -> SentencePieceTokenizer:
    prefix = (fields["bos_token"],) if fields.pop("add_bos_token", False) else original.prefix
    suffix = (fields["eos_token"],) if fields.pop("add_eos_token", False) else ()
    special = _special(original, fields)
    own = {name: special[fields[name]] for name in OWN if fields.get(name)}
    appended = {"extra_special_tokens": _appended(original)}
    return SentencePieceTokenizer(vocab_file=str(file), prefix=prefix, suffix=suffix, **{**fields, **own, **appended, MARK: original.name})


def _special(original: Original, fields: Mapping[str, Any]) -> dict[str, AddedToken]:
    strips = original.swallows_spaces
    names = dict.fromkeys(fields[name] for name in OWN if fields.get(name))
    return {name: AddedToken(name, lstrip=strips, rstrip=strips, normalized=False, special=True) for name in names}


def _appended(original: Original) -> list[AddedToken]:
    return [AddedToken(name, normalized=False, special=True) for name in original.appended]

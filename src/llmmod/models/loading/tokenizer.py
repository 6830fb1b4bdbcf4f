"""Tokenizers from checkpoints: a hub id, a local directory, a folder of an installed package, or a GGUF file.

A checkpoint of 2023 has a vocabulary file and its own code. Its tokenizer is built from the file and the original's rules, with the same
ids and without running that code: a fast one if it is exact, else SentencePiece itself. transformers reads the tokenizers that it supports.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SetMinLogLevel
from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY, check_model_directory, check_reachable, find_checkpoint, has_tokenizer
from llmmod.models.families.native import check_known_layout
from llmmod.models.loading.load import WHERE, explain_loading_errors, report_remote_code
from llmmod.models.loading.weight_files import tokenizer_from_gguf
from llmmod.models.tokenizers import originals
from llmmod.models.tokenizers.originals import LLAMA, MARK, QWEN, Original, SentencePieceTokenizer
from llmmod.models.tokenizers.sentencepiece_bpe import BPE, is_exact, read_model, rust_tokenizer

log = logging.getLogger(__name__)

TOKENIZER_KEY = "tokenizer.pretrained_model_name_or_path"
_OWN = ("bos_token", "eos_token", "unk_token", "pad_token")
# Fields of tokenizer_config.json that are used; the others belong to the original class, or name code.
_KEPT = (*_OWN, "add_bos_token", "add_eos_token", "model_max_length", "padding_side", "truncation_side", "chat_template")
_CODE = ("trust_remote_code", "code_revision")


def load_tokenizer(pretrained_model_name_or_path: str, **arguments: Any) -> Any:
    """A checkpoint's tokenizer.

    Args:
        pretrained_model_name_or_path: a hub id, a directory, a GGUF file, or `pkg://package/folder` for an installed package.
        arguments: as in `AutoTokenizer.from_pretrained`; `gguf_file` names a file in that directory.

    Returns:
        A transformers.PreTrainedTokenizerBase.

    Raises:
        ConfigError: the checkpoint doesn't exist, or its tokenizer is missing or can't be read.
    """
    checkpoint = find_checkpoint(pretrained_model_name_or_path, gguf_file=arguments.pop("gguf_file", None))
    if not checkpoint.local:
        where = {name: arguments[name] for name in WHERE if name in arguments}
        check_reachable(checkpoint.path, filename=checkpoint.gguf_file or "tokenizer_config.json", **where)
    elif checkpoint.gguf_file is None and not has_tokenizer(Path(checkpoint.path)):
        # transformers would create an empty one for some classes (qwen2), which encodes every text to an empty list.
        check_model_directory(checkpoint, weights=False)
        do = f"To use another model's: {TOKENIZER_KEY}=/path/to/directory"
        raise ConfigError(Problem(PATH_KEY, f"'{checkpoint.path}' doesn't have a tokenizer", do=do))
    with explain_loading_errors(checkpoint, arguments):
        if checkpoint.gguf_file is not None:
            return tokenizer_from_gguf(checkpoint.path, checkpoint.gguf_file, **arguments)
        tokenizer = load_original(checkpoint.path, **arguments)
        if tokenizer is None:
            config = Path(checkpoint.path) / "config.json"
            if config.is_file() and not (config.parent / "tokenizer.json").is_file():
                check_known_layout(json.loads(config.read_text(encoding="utf-8")), path=checkpoint.path)
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, **arguments)
        report_remote_code(tokenizer, pretrained_model_name_or_path, trust_remote_code=bool(arguments.get("trust_remote_code")))
        return tokenizer


def set_pad_token(tokenizer: Any) -> None:
    """Set the padding token of a tokenizer without one to an existing token, so that embeddings aren't added: unk, else eos.

    The collator uses the lengths of texts instead of this id, so a real eos is still trained.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token


def load_original(path: str, **arguments: Any) -> Any:
    """The tokenizer of a checkpoint of 2023, with the same ids as its own code.

    Args:
        path: a directory or hub id.
        arguments: as in from_pretrained; fields of the tokenizer replace the checkpoint's. Code is never run.

    Returns:
        A PreTrainedTokenizerFast, which stock transformers saves and reloads; a SentencePieceTokenizer if a fast one isn't exact; None if
        the checkpoint isn't one of 2023, or has a tokenizer.json that transformers reads correctly.

    Raises:
        ValueError: the vocabulary can't be read, or added tokens don't follow it.
    """
    files = _Files(path, {name: arguments.pop(name) for name in WHERE if name in arguments and name not in _CODE})
    tokenizer_config = files.read("tokenizer_config.json")
    original = originals.original_of(tokenizer_config, files.read("config.json"))
    if original is None:
        return None
    if original is LLAMA and files.find("tokenizer.json"):
        return _as_written(files, arguments)
    file = files.find(original.file)
    if file is None:
        return None
    given = {name: value for name, value in arguments.items() if name not in _CODE}
    kept = {name: _text(tokenizer_config[name]) for name in _KEPT if tokenizer_config.get(name) is not None}
    if template := files.find("chat_template.jinja"):
        kept["chat_template"] = template.read_text(encoding="utf-8")
    fields = {"model_input_names": ["input_ids", "attention_mask"], "add_bos_token": original.adds_bos}
    tokenizer = tokenizer_of(original, file, {**fields, **original.own, **original.arguments, **kept, **given})
    _add(tokenizer, _added(tokenizer_config, files.read("added_tokens.json")))
    tokenizer.name_or_path = path
    return tokenizer


def tokenizer_of(original: Original, file: Path, fields: Mapping[str, Any]) -> Any:
    """The tokenizer of a vocabulary.

    Args:
        original: its rules.
        file: `original.file` of a checkpoint.
        fields: of the transformers class, with special tokens and `add_bos_token`.

    Raises:
        ValueError: the file can't be read.
    """
    if original.prefix or original is QWEN:  # with these, transformers would add its own post-processor
        fields = {name: value for name, value in fields.items() if name not in ("add_bos_token", "add_eos_token")}
    if original is QWEN:
        extra = [token for token in originals.QWEN_SPECIAL if token not in {fields.get(name) for name in _OWN}]
        return PreTrainedTokenizerFast(tokenizer_object=originals.tiktoken_tokenizer(file), extra_special_tokens=extra, **fields)
    model = read_model(file)
    if model.type == BPE and model.byte_fallback:
        rust = rust_tokenizer(model)
        SetMinLogLevel(2)  # errors only; otherwise it warns on stderr of InternLM's piece for NUL
        if is_exact(rust, SentencePieceProcessor(model_file=str(file)), model):
            return _fast(original, rust, dict(fields))
    log.warning("%s: the fast tokenizer can't follow its rules exactly, so SentencePiece itself is used, which is slower.", file)
    return _slow(original, file, dict(fields))


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
    own = {name: special[fields[name]] for name in _OWN if fields.get(name)}
    appended = {"extra_special_tokens": _appended(original)}
    return SentencePieceTokenizer(vocab_file=str(file), prefix=prefix, suffix=suffix, **{**fields, **own, **appended, MARK: original.name})


def _special(original: Original, fields: Mapping[str, Any]) -> dict[str, AddedToken]:
    strips = original.strips_spaces
    names = dict.fromkeys(fields[name] for name in _OWN if fields.get(name))
    return {name: AddedToken(name, lstrip=strips, rstrip=strips, normalized=False, special=True) for name in names}


def _appended(original: Original) -> list[AddedToken]:
    return [AddedToken(name, normalized=False, special=True) for name in original.appended]


class _Files:
    """The files of a checkpoint, local or on the hub."""

    def __init__(self, path: str, where: Mapping[str, Any]) -> None:
        self.path, self.where = path, dict(where)

    def find(self, name: str) -> Path | None:
        """The path of a file; None if it is missing or can't be downloaded, which later code reports."""
        asked = ("missing_entries", "connection_errors", "gated_repo")
        found = cached_file(self.path, name, **self.where, **{f"_raise_exceptions_for_{what}": False for what in asked})
        return Path(found) if found else None

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file's object; empty without the file."""
        file = self.find(name)
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file else {}


def _as_written(files: _Files, arguments: Mapping[str, Any]) -> Any:
    """The tokenizer of a tokenizer.json of transformers 4, exactly as in the file; None for one of transformers 5.

    LlamaTokenizer of transformers 5.23 replaces the normalizer of such a file by a pre-tokenizer: LLaMA-2's texts that begin with white
    space or have runs of it get other ids.
    """
    made = files.read("tokenizer.json")
    if made.get("pre_tokenizer") is not None or made.get("normalizer") is None:
        return None
    return PreTrainedTokenizerFast.from_pretrained(files.path, **files.where, **arguments)


def _added(tokenizer_config: Mapping[str, Any], added_tokens: Mapping[str, int]) -> dict[int, AddedToken]:
    """The tokens that a fine-tuned checkpoint added to its vocabulary, by id."""
    found = {index: AddedToken(token, normalized=False) for token, index in added_tokens.items()}
    for index, fields in (tokenizer_config.get("added_tokens_decoder") or {}).items():
        found[int(index)] = AddedToken(**{name: value for name, value in fields.items() if not name.startswith("_")})
    return dict(sorted(found.items()))


def _add(tokenizer: Any, added: Mapping[int, AddedToken]) -> None:
    known = tokenizer.get_vocab() if added else {}
    for index, token in added.items():
        if known.get(token.content) == index:
            continue
        tokenizer.add_tokens([token])
        if tokenizer.convert_tokens_to_ids(token.content) != index:
            raise ValueError(f"its added token '{token.content}' has the id {index}, which doesn't follow its vocabulary")


def _text(value: Any) -> Any:
    """A special token of tokenizer_config.json, a string or the fields of an AddedToken, as a string."""
    return value["content"] if isinstance(value, Mapping) and "content" in value else value

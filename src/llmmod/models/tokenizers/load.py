"""From an original checkpoint's files to a tokenizer that needs no code of theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast
from transformers.utils import cached_file

from llmmod.models.tokenizers.build import OWN, tokenizer_of
from llmmod.models.tokenizers.originals import LLAMA, original_of

# Of tokenizer_config.json; the rest are the original class's own, or name code.
_KEPT = (*OWN, "add_bos_token", "add_eos_token", "model_max_length", "padding_side", "truncation_side", "chat_template")
_WHERE = ("revision", "cache_dir", "token", "local_files_only", "proxies", "force_download", "subfolder")
_CODE = ("trust_remote_code", "code_revision")


def load_original(path: str, **arguments: Any) -> Any:
    """The tokenizer of a checkpoint of 2023, with the ids that the code it came with gives.

    Args:
        path: a directory or hub id.
        arguments: those of from_pretrained; fields of the tokenizer take the place of the checkpoint's. Code is never run.

    Returns:
        A PreTrainedTokenizerFast, which stock transformers saves and reloads; a SentencePieceTokenizer where no fast one is exact;
        None where the checkpoint is none of 2023's, or has a tokenizer.json that transformers reads right.

    Raises:
        ValueError: a vocabulary that can't be read, or added tokens that don't follow it.
    """
    files = _Files(path, {name: arguments.pop(name) for name in _WHERE if name in arguments})
    tokenizer_config = files.read("tokenizer_config.json")
    original = original_of(tokenizer_config, files.read("config.json"))
    if original is None:
        return None
    if original is LLAMA and files.find("tokenizer.json"):
        return _as_it_is(files, arguments)
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


class _Files:
    """The files of a checkpoint, local or on the hub."""

    def __init__(self, path: str, where: Mapping[str, Any]) -> None:
        self.path, self.where = path, dict(where)

    def find(self, name: str) -> Path | None:
        """Where a file is, None where there is none or it can't be had: what comes next says why."""
        asked = ("missing_entries", "connection_errors", "gated_repo")
        found = cached_file(self.path, name, **self.where, **{f"_raise_exceptions_for_{what}": False for what in asked})
        return Path(found) if found else None

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file's object, empty where there is none."""
        file = self.find(name)
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file else {}


def _as_it_is(files: _Files, arguments: Mapping[str, Any]) -> Any:
    """A tokenizer.json of transformers 4 taken at its word; None for one of transformers 5, which is read right.

    LlamaTokenizer of transformers 5.23 makes up a pre-tokenizer in place of the normalizer that stands in such a file: LLaMA-2's texts
    that begin with white space or have runs of it get other ids.
    """
    made = files.read("tokenizer.json")
    if made.get("pre_tokenizer") is not None or made.get("normalizer") is None:
        return None
    return PreTrainedTokenizerFast.from_pretrained(files.path, **files.where, **arguments)


def _added(tokenizer_config: Mapping[str, Any], added_tokens: Mapping[str, int]) -> dict[int, AddedToken]:
    """Tokens that a fine-tuned checkpoint has besides its vocabulary, by id."""
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
    """A special token, which tokenizer_config.json writes as a string or as the fields of an AddedToken, as a string."""
    return value["content"] if isinstance(value, Mapping) and "content" in value else value

"""Tokenizers from checkpoints: a hub id, a local directory, a folder of an installed package, or a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY, Checkpoint, check_model_directory, find_checkpoint, has_tokenizer
from llmmod.files.hub import check_reachable
from llmmod.models.families.native import check_known_layout
from llmmod.models.loading.load import WHERE, explain_loading_errors, report_remote_code
from llmmod.models.tokenizers.load import load_original

TOKENIZER_KEY = "tokenizer.pretrained_model_name_or_path"


def load_tokenizer(pretrained_model_name_or_path: str, **arguments: Any) -> Any:
    """A checkpoint's tokenizer.

    Args:
        pretrained_model_name_or_path: a hub id, a directory, a GGUF file, or `pkg://package/folder` for an installed package.
        arguments: those of `AutoTokenizer.from_pretrained`; `gguf_file` names a file in that directory.

    Returns:
        A transformers.PreTrainedTokenizerBase.

    Raises:
        ConfigError: there is no such checkpoint, or it has no tokenizer that can be read.
    """
    checkpoint = find_checkpoint(pretrained_model_name_or_path, gguf_file=arguments.pop("gguf_file", None))
    if not checkpoint.local:
        where = {name: arguments[name] for name in WHERE if name in arguments}
        check_reachable(checkpoint.path, filename=checkpoint.gguf_file or "tokenizer_config.json", **where)
    elif checkpoint.gguf_file is None:
        _check_directory(checkpoint)
    with explain_loading_errors(checkpoint, arguments):
        if checkpoint.gguf_file is None:
            tokenizer = _from_files(checkpoint, arguments)
            report_remote_code(tokenizer, pretrained_model_name_or_path, trust_remote_code=bool(arguments.get("trust_remote_code")))
            return tokenizer
        from llmmod.models.loading.gguf import tokenizer_from_gguf

        return tokenizer_from_gguf(checkpoint.path, checkpoint.gguf_file, **arguments)


def _from_files(checkpoint: Checkpoint, arguments: dict[str, Any]) -> Any:
    tokenizer = load_original(checkpoint.path, **arguments)
    if tokenizer is not None:
        return tokenizer
    directory = Path(checkpoint.path)
    config = directory / "config.json"
    if config.is_file() and not (directory / "tokenizer.json").is_file():
        check_known_layout(json.loads(config.read_text()), path=checkpoint.path)
    return AutoTokenizer.from_pretrained(checkpoint.path, **arguments)


def _check_directory(checkpoint: Checkpoint) -> None:
    directory = Path(checkpoint.path)
    if not has_tokenizer(directory):
        # transformers would make up an empty one for some classes (qwen2): every text encodes to nothing.
        check_model_directory(checkpoint, weights=False)
        do = f"To take another model's: {TOKENIZER_KEY}=/path/to/directory"
        raise ConfigError(Problem(PATH_KEY, f"'{checkpoint.path}' holds no tokenizer", do=do))


def set_pad_token(tokenizer: Any) -> None:
    """Give a tokenizer without a padding token one that it has already, so that no embedding is added: unk, else eos.

    Padding is told from text by the collator's own account of lengths, never by this id, so an eos that is text stays trained.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token

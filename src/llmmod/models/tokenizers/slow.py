"""SentencePiece itself as a transformers tokenizer: for models whose rules the Rust library hasn't got.

Exact for every model, and some twenty times slower. Stock transformers doesn't know this class: from a directory that it saved, it
takes the nearest that it has, which splits texts alike but leaves out what begins them, or worse.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from llmmod.models.tokenizers.originals import MARK

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

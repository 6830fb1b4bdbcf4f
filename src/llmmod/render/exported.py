"""What a saved model has beside it for programs that write a prompt as one text: a chat template, and a tokenizer that reads its tokens.

ChatGLM2's code puts `[gMASK]` and `sop` before a text by their ids, and never reads a token in a text: "sop" is a part of "gossop". A chat
template has nothing but text. In a saved tokenizer they are therefore spelt `[gMASK]` and `<sop>`, as GLM-4 spells them, and read where a
text has them; the ids are the same.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from llmmod.protocols import Render
from llmmod.render.tokens import RESPELT

_OWN = ("bos_token", "eos_token", "unk_token", "pad_token")


def exported(render: Render, tokenizer: Any) -> tuple[Any, str]:
    """The tokenizer to save, and the chat template with which it writes what the render does; the tokenizer itself where it can.

    Args:
        render: the one that was trained with.
        tokenizer: the run's.
    """
    spelt = getattr(render, "token_texts", None)
    if spelt is None or (other := _readable(tokenizer)) is tokenizer:
        return tokenizer, render.chat_template()
    writer: Any = copy.copy(render)
    writer.token_texts = dict(zip(spelt, other.convert_ids_to_tokens(list(spelt)), strict=True))
    return other, writer.chat_template()


def _readable(tokenizer: Any) -> Any:
    """A tokenizer with the same ids that reads its special tokens in a text; any that has none to respell is returned as it is."""
    has = set(RESPELT) <= set(getattr(tokenizer, "added_tokens_encoder", ()))
    if not has or not tokenizer.is_fast or not tokenizer.split_special_tokens:
        return tokenizer
    own = {name: getattr(tokenizer, name) for name in _OWN if getattr(tokenizer, name)}
    others = [name for name in tokenizer.added_tokens_encoder if name not in own.values()]
    kept = ("model_input_names", "padding_side", "model_max_length", "name_or_path")
    rust = tokenizer.backend_tokenizer
    return type(tokenizer)(
        tokenizer_object=type(rust).from_str(json.dumps(_respelt(json.loads(rust.to_str())))),
        extra_special_tokens=[RESPELT.get(name, name) for name in others],
        **own,
        **{name: getattr(tokenizer, name) for name in kept},
    )


def _respelt(made: Any) -> Any:
    """A tokenizer.json with other names: keys of its vocabulary, of its added tokens and of what begins a text."""
    if isinstance(made, dict):
        return {RESPELT.get(key, key): _respelt(value) for key, value in made.items()}
    if isinstance(made, list):
        return [_respelt(value) for value in made]
    return RESPELT.get(made, made) if isinstance(made, str) else made

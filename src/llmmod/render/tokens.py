"""Tokens that a render names: each becomes exactly one id, or an error that says which is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmmod.errors import Problem, nearest
from llmmod.schema.data import RenderConf

# ChatGLM2's names of tokens -> those of GLM-4, which a saved ChatGLM2 has too (`llmmod.render.exported`).
RESPELT = {"sop": "<sop>", "eop": "<eop>"}
# Names that stand for whatever the tokenizer has in that place.
OWN = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


def token_id(name: str, tokenizer: Any, *, key: str, render: str) -> int | Problem:
    """The id of a token, or what is wrong with it.

    Args:
        name: a token as the vocabulary spells it, or one of `OWN`.
        tokenizer: where it is looked up.
        key: where the render names it, as a user would type it.
        render: the render's name, for the message.
    """
    if name in OWN:
        own = getattr(tokenizer, f"{name}_id", None)
        return own if own is not None else Problem(key, f"this tokenizer has no {name}", do=f"Set tokenizer.kwargs.{name}='…'")
    for spelling in (name, RESPELT.get(name, name)):
        known = tokenizer.convert_tokens_to_ids(spelling)
        if known is not None and (known != tokenizer.unk_token_id or spelling == tokenizer.unk_token):
            return int(known)
    close = nearest(name, _special_tokens(tokenizer))
    instead = "leave it out" if "stop_words" in key else f"write it as text: '{name}' in place of {{token: '{name}'}}"
    return Problem(
        key,
        f"render={render} needs the token '{name}', which this tokenizer doesn't know",
        f"Its nearest is '{close[0]}'" if close else "",
        f"Take a render made for this tokenizer (render=auto: its own), or {instead}",
    )


def named_tokens(conf: RenderConf) -> list[str]:
    """The tokens that a render names, each once, in order; the tokenizer's own (`eos_token`, …) left out."""
    items = [*conf.prefix, *(conf.empty_prefix or ()), *conf.prompt, *conf.response, *conf.sep]
    named = [item["token"] for item in items if isinstance(item, Mapping) and "token" in item]
    return [name for name in dict.fromkeys([*named, *conf.stop_words]) if name not in OWN]


def own_beginning(tokenizer: Any) -> int | None:
    """The beginning token, where the tokenizer itself starts a text with it; GPT-2, Qwen and SmolLM2 don't: None."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos] else None


def _special_tokens(tokenizer: Any) -> list[str]:
    return [*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())]

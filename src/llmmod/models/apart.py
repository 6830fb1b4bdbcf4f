"""Which models can keep several examples of one row apart, and why the others can't: known before torch or a model is loaded.

Whether a family's attention can be kept apart is a matter of its code, so `FAMILIES` lists those for which a test compares losses and
gradients with each example's alone. How it is done, `segments` says. Pure Python.
"""

from __future__ import annotations

import json
from pathlib import Path

from llmmod.errors import ConfigError
from llmmod.models.checkpoint import find_checkpoint
from llmmod.models.families.registry import family_of

# model_type of the configuration -> why its examples can't be kept apart; None: they can.
_OWN_ATTENTION = "it computes attention itself, over the whole row, and its positions are those in the row"
FAMILIES: dict[str, str | None] = {
    "llama": None,
    "mistral": None,
    "qwen2": None,
    "qwen3": None,
    "gemma3_text": None,
    "phi": None,
    "phi3": None,
    "glm": None,
    "glm4": None,
    # Without an option of their own.
    "gemma": None,
    "gpt2": None,
    "granite": None,
    "mixtral": None,
    "olmo2": None,
    "qwen3_moe": None,
    "starcoder2": None,
    "baichuan": "its ALiBi is part of a mask over the whole row",  # of 13 billion; those of 7 billion become llama
    "bloom": _OWN_ATTENTION,
    "falcon": _OWN_ATTENTION,
}


def why_not_family(family: str) -> str | None:
    """Why several examples can't stand in one row of a family's model (its model_type); None where they can."""
    if family not in FAMILIES:
        return f"whether {family} keeps the examples of a row apart was not checked"
    if FAMILIES[family]:
        return f"{family} can't keep the examples of a row apart: {FAMILIES[family]}"
    return None


def why_not_attention(attention: str, *, branches: bool = False) -> str | None:
    """Why several examples can't stand in one row with one of transformers' implementations of attention; None where they can.

    Args:
        attention: as `attn_implementation` has it.
        branches: whether they are to share their beginnings.
    """
    if attention != "sdpa" and not is_flash(attention):
        return f"attention '{attention}' can't keep the examples of a row apart"
    if branches and is_flash(attention):
        return f"attention '{attention}' can't let two answers share their prompt"
    return None


def is_flash(attention: str) -> bool:
    """Whether it is one of flash attention's kernels of variable length, which keep examples apart themselves."""
    return "flash" in attention and "flex" not in attention


def why_not_named(*, path: str | None, gguf_file: str | None, stated: str | None, attention: str | None) -> str | None:
    """Why several examples can't stand in one row of a model that isn't loaded yet; None where they can, or where nobody knows.

    Args:
        path: of its checkpoint; None: there is none to look at.
        gguf_file: the file in it that is read instead.
        stated: its model_type, where no checkpoint on this disk says another.
        attention: as `attn_implementation` has it; None: transformers' own choice.
    """
    family = (family_on_disk(path, gguf_file) if path is not None else None) or stated
    reason = why_not_family(family) if family in FAMILIES else None
    return reason or (why_not_attention(attention) if attention is not None else None)


def family_on_disk(path: str, gguf_file: str | None = None) -> str | None:
    """The model_type of the class that a local checkpoint becomes; None where its config.json doesn't say it, or isn't on this disk.

    Args:
        path: as `model.pretrained_model_name_or_path` has it.
        gguf_file: the file in it that is read instead.
    """
    try:
        checkpoint = find_checkpoint(path, gguf_file=gguf_file)
        if not checkpoint.local or checkpoint.gguf_file is not None:
            return None
        raw = json.loads((Path(checkpoint.path) / "config.json").read_text(encoding="utf-8"))
        family = family_of(raw, path=path)
    except (ConfigError, OSError, ValueError, AttributeError):
        return None  # another check says what is wrong with it
    return family.native if family is not None else raw.get("model_type")

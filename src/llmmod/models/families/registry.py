"""A model's family of 2023, and whether its rows can have several examples, by names, before torch or a model is loaded.

For `PACKED_FAMILIES` a test compares losses and gradients with those of each example alone; other classes are measured when a model is
loaded (`models.packing`). Pure Python.
"""

from __future__ import annotations

import json
from pathlib import Path

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY, find_checkpoint
from llmmod.models.families.family import Family, Raw
from llmmod.models.families.layouts import BAICHUAN2_7B, BAICHUAN2_13B, BAICHUAN_7B, BAICHUAN_13B, CHATGLM2, INTERNLM, MIXFORMER, QWEN

FAMILIES = (CHATGLM2, QWEN, INTERNLM, BAICHUAN_7B, BAICHUAN2_7B, BAICHUAN_13B, BAICHUAN2_13B, MIXFORMER)

# model_type of configurations whose classes are exact with segments.
PACKED_FAMILIES = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi", "phi3", "glm", "glm4",
    "gemma", "gpt2", "granite", "mixtral", "olmo2", "qwen3_moe", "starcoder2",  # without an own option in conf/model
})  # fmt: skip
_BY_MASK = ("eager", "baichuan_alibi")  # these add a mask to their scores


def family_of(raw: Raw, *, path: str) -> Family | None:
    """The layout of 2023 of a checkpoint, or None.

    Args:
        raw: its config.json.
        path: for messages.

    Raises:
        ConfigError: it has the model_type of known families, but isn't one of them.
    """
    candidates = [family for family in FAMILIES if family.model_type == raw.get("model_type")]
    if not candidates:
        return None
    fitting = [family for family in candidates if family.fits(raw)]
    if len(fitting) != 1:
        names = ", ".join(family.name for family in candidates)
        found = f"'{path}' has model_type {raw['model_type']}, but its config.json is not one of {names}"
        raise ConfigError(Problem(PATH_KEY, found, do="Use a checkpoint of one of them"))
    return fitting[0]


def families_of_class(native: str) -> tuple[Family, ...]:
    """The families of a native class, by its model_type."""
    return tuple(family for family in FAMILIES if family.native == native)


def why_not_packed_with(attention: str) -> str | None:
    """Why several examples can't be in one row with one of transformers' implementations of attention; None if they can.

    Args:
        attention: as in `attn_implementation`.
    """
    if attention != "sdpa" and attention not in _BY_MASK and not is_flash(attention):
        return f"attention '{attention}' can't keep the examples of a row apart"
    return None


def is_flash(attention: str) -> bool:
    """Whether it is one of flash attention's kernels of variable length, which keep examples apart."""
    return "flash" in attention and "flex" not in attention


def family_on_disk(path: str, gguf_file: str | None = None) -> str | None:
    """The model_type of the class for a local checkpoint; None if its config.json doesn't have it, or isn't on this disk.

    Args:
        path: as in `model.pretrained_model_name_or_path`.
        gguf_file: the file in it that is read instead.
    """
    try:
        checkpoint = find_checkpoint(path, gguf_file=gguf_file)
        if not checkpoint.local or checkpoint.gguf_file is not None:
            return None
        raw = json.loads((Path(checkpoint.path) / "config.json").read_text(encoding="utf-8"))
        family = family_of(raw, path=path)
    except (ConfigError, OSError, ValueError, AttributeError):
        return None  # another check reports it
    return family.native if family is not None else raw.get("model_type")

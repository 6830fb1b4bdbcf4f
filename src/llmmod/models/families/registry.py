"""What a model's names say before torch or a model is loaded: its family of 2023, and whether its rows can hold several examples.

`PACKED_FAMILIES` are those for which a test compares losses and gradients with each example's alone; what any other class does is measured
when one is loaded (`models.packing`). Pure Python.
"""

from __future__ import annotations

import json
from pathlib import Path

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY, find_checkpoint
from llmmod.models.families.family import Family, Raw
from llmmod.models.families.layouts import BAICHUAN2_7B, BAICHUAN2_13B, BAICHUAN_7B, BAICHUAN_13B, CHATGLM2, INTERNLM, MIXFORMER, QWEN

FAMILIES = (CHATGLM2, QWEN, INTERNLM, BAICHUAN_7B, BAICHUAN2_7B, BAICHUAN_13B, BAICHUAN2_13B, MIXFORMER)

# model_type of configurations whose classes are exact by segments.
PACKED_FAMILIES = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi", "phi3", "glm", "glm4",
    "gemma", "gpt2", "granite", "mixtral", "olmo2", "qwen3_moe", "starcoder2",  # without an option of their own
})  # fmt: skip
_BY_MASK = ("eager", "baichuan_alibi")  # they add a mask to their scores


def family_of(raw: Raw, *, path: str) -> Family | None:
    """The layout of a checkpoint, None where it is none of 2023's.

    Args:
        raw: its config.json.
        path: for messages.

    Raises:
        ConfigError: it shares its model_type with families that are known, and is none of them.
    """
    candidates = [family for family in FAMILIES if family.model_type == raw.get("model_type")]
    if not candidates:
        return None
    fitting = [family for family in candidates if family.fits(raw)]
    if len(fitting) != 1:
        names = ", ".join(family.name for family in candidates)
        found = f"'{path}' says model_type {raw['model_type']}, but its config.json is not that of {names}"
        raise ConfigError(Problem(PATH_KEY, found, do="Use a checkpoint of one of them"))
    return fitting[0]


def families_of_class(native: str) -> tuple[Family, ...]:
    """The families that a native class (its model_type) stands for."""
    return tuple(family for family in FAMILIES if family.native == native)


def why_not_packed_with(attention: str) -> str | None:
    """Why several examples can't stand in one row with one of transformers' implementations of attention; None where they may.

    Args:
        attention: as `attn_implementation` has it.
    """
    if attention != "sdpa" and attention not in _BY_MASK and not is_flash(attention):
        return f"attention '{attention}' can't keep the examples of a row apart"
    return None


def is_flash(attention: str) -> bool:
    """Whether it is one of flash attention's kernels of variable length, which keep examples apart themselves."""
    return "flash" in attention and "flex" not in attention


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

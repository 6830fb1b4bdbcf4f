"""The families there are, and which of them a checkpoint's config.json belongs to."""

from __future__ import annotations

from llmmod.errors import ConfigError, Problem
from llmmod.models.checkpoint import PATH_KEY
from llmmod.models.families.baichuan import BAICHUAN2_7B, BAICHUAN2_13B, BAICHUAN_7B, BAICHUAN_13B
from llmmod.models.families.chatglm2 import CHATGLM2
from llmmod.models.families.family import Family, Raw
from llmmod.models.families.internlm import INTERNLM
from llmmod.models.families.mixformer import MIXFORMER
from llmmod.models.families.qwen import QWEN

FAMILIES = (CHATGLM2, QWEN, INTERNLM, BAICHUAN_7B, BAICHUAN2_7B, BAICHUAN_13B, BAICHUAN2_13B, MIXFORMER)


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
        raise ConfigError(Problem(PATH_KEY, found, do="Loaded as one of them it would compute nonsense"))
    return fitting[0]


def families_of_class(native: str) -> tuple[Family, ...]:
    """The families that a native class (its model_type) stands for."""
    return tuple(family for family in FAMILIES if family.native == native)

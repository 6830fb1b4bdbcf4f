"""What is for rotary positions asked of a model that has none: told from names and from config.json, before its weights are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmmod.errors import Problem
from llmmod.instantiate import import_own
from llmmod.schema.validate.context import Context

_WITHOUT = ("baichuan", "bloom", "gpt2", "mpt", "opt")  # model_type; of Baichuan those of 13 billion, since the others become llama


def check_positions(context: Context) -> Iterator[Problem]:
    """A problem for each `rope_scaling` and `shift_attn` of a model of such a family; a loaded model's own are looked at again later."""
    for place in context.places("model"):
        kind, shifted = context.get(f"{place}.rope_scaling.type"), context.get(f"{place}.shift_attn")
        if not (kind or shifted is True):
            continue
        family = _family(context, context.get(place) or {})
        if family in _WITHOUT and kind:
            found = f"'{kind}', but a model of type {family} has no rotary positions to scale"
            yield Problem(f"{place}.rope_scaling.type", found, do="Leave it null")
        if family in _WITHOUT and shifted is True:
            found = f"true, but LongLoRA is for rotary positions, and a model of type {family} has none"
            yield Problem(f"{place}.shift_attn", found, do="Leave it false")


def _family(context: Context, model: Any) -> str | None:
    """The model_type of the class that a model option is loaded as, as far as it can be known."""
    path, stated = model.get("pretrained_model_name_or_path"), (model.get("architecture") or {}).get("model_type")
    on_disk = None
    if isinstance(path, str) and not (context.smoke and stated):
        on_disk = import_own("llmmod.models.apart.family_on_disk")(path, model.get("gguf_file"))
    return on_disk or stated

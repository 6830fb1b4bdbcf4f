"""Original checkpoints of 2023 as models of today's classes: read once, converted on the way, nothing of their own code run."""

from __future__ import annotations

import re
from typing import Any

from llmmod.errors import ConfigError, Problem
from llmmod.models.checkpoint import PATH_KEY
from llmmod.models.families.baichuan import HEAD_IS_FINAL
from llmmod.models.families.config import model_class, original_config
from llmmod.models.families.family import NATIVE_LAYERS, RECOMPUTED, Family
from llmmod.models.families.weights import converting

_CODE = ("trust_remote_code", "code_revision")


def load_original(path: str, family: Family, config: Any, **arguments: Any) -> Any:
    """A family's checkpoint as a model of the native class.

    Args:
        path: a directory or hub id.
        family: as `registry.family_of` finds it.
        config: as `config.native_config` makes it.
        arguments: the rest of from_pretrained's.

    Returns:
        The model, or model and loading info where `output_loading_info` asks for both.

    Raises:
        ConfigError: the checkpoint has weights that the layout doesn't.
    """
    given = {name: value for name, value in arguments.items() if name not in _CODE}
    native = model_class(config)
    final = bool((original_config(config) or {}).get(HEAD_IS_FINAL))
    with converting(native, family, depth=config.num_hidden_layers, unit_rows=not final):
        model, info = native.from_pretrained(path, config=config, **given | {"output_loading_info": True})
    # With the rules kept, what is saved would have the original names, and a trainer that resumes from it would find none of its own:
    # it warns, and goes on from the base model (transformers 5.23; issues 43701, 48805).
    model._weight_conversions = []
    _refuse_strangers(info, path, family, depth=config.num_hidden_layers)
    return (model, info) if arguments.get("output_loading_info") else model


def _refuse_strangers(info: dict[str, Any], path: str, family: Family, *, depth: int) -> None:
    """Refuse weights that have no place: whatever they do in the original, the native model wouldn't."""
    strangers = sorted(name for name in info["unexpected_keys"] if not RECOMPUTED.search(name) and not _beyond(name, depth))
    if strangers:
        found = f"'{path}' is not the layout of {family.name} that its config.json says: no place for {len(strangers)} weights"
        raise ConfigError(Problem(PATH_KEY, f"{found}, among them {strangers[0]}"))


def _beyond(name: str, depth: int) -> bool:
    """Whether a weight is of a layer that was asked to be left out."""
    match = re.match(rf"{re.escape(NATIVE_LAYERS)}\.(\d+)\.", name)
    return match is not None and int(match[1]) >= depth

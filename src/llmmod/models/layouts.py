"""Checkpoints whose layout nothing here can load, recognised before their weights are read.

The model code that came with those of 2023 was written for transformers 4.30. Today it fails, or, worse, loads and computes nonsense
without a word (rotary buffers stay uninitialised), so it isn't run, `model.trust_remote_code` or not. `families` has those that are
converted.
"""

from __future__ import annotations

import logging
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from llmmod.errors import ConfigError, Problem
from llmmod.models.checkpoint import PATH_KEY
from llmmod.models.families.registry import family_of

log = logging.getLogger(__name__)

# model_type of the checkpoint -> who published models of that layout
_OF_2023 = {
    "RefinedWeb": "Falcon, before July 2023",
    "RefinedWebModel": "Falcon, before July 2023",
}


def check_layout(config: dict[str, Any], *, path: str, trust_remote_code: bool = False) -> None:
    """Nothing, where a checkpoint's config.json names a model that can be loaded.

    Raises:
        ConfigError: a layout that can't be converted, or one that only code from the checkpoint can read.
    """
    check_known_layout(config, path=path)
    model_type = config.get("model_type")
    if model_type in CONFIG_MAPPING_NAMES or family_of(config, path=path) is not None or (trust_remote_code and "auto_map" in config):
        return
    found = f"transformers has no model_type {model_type}, which config.json of '{path}' names"
    trust = "If you trust whoever made it, model.trust_remote_code=true runs the Python code that comes with it"
    raise ConfigError(Problem(PATH_KEY, found, do=trust if "auto_map" in config else ""))


def check_known_layout(config: dict[str, Any], *, path: str) -> None:
    """Nothing, unless config.json names a layout of 2023 that can't be converted.

    Raises:
        ConfigError: saying whose it is.
    """
    model_type = config.get("model_type")
    if model_type in _OF_2023:
        found = f"the layout of '{path}' (model_type {model_type}: {_OF_2023[model_type]}) can't be loaded"
        raise ConfigError(Problem(PATH_KEY, found, do="Take a later revision, which transformers has a class for"))


def tell_of_code(loaded: Any, path: str, *, trust_remote_code: bool) -> None:
    """Say what `model.trust_remote_code` came to: that code of a checkpoint was run, or that none was.

    Args:
        loaded: a model or tokenizer.
        path: of its checkpoint.
        trust_remote_code: as it was set.
    """
    kind = type(loaded)
    if kind.__module__.startswith("transformers_modules."):
        log.warning(
            "model.trust_remote_code=true: Python code that came with '%s' was run, with all your rights, and %s is what it defines. What "
            "that computes was checked by nobody here, and who loads what is saved must run the code too.",
            path, kind.__name__,
        )  # fmt: skip
    elif trust_remote_code:
        log.info("model.trust_remote_code=true: no code of '%s' was needed; %s does without.", path, kind.__name__)

"""A checkpoint's config.json as the configuration of the native class."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from llmmod.models.families.alibi import BaichuanConfig, BaichuanForCausalLM
from llmmod.models.families.family import Family, Raw

# Where a configuration keeps the config.json it was made from; a saved native checkpoint has it too, so that it can be written back.
ORIGINAL = "original_config"


def native_config(family: Family, raw: Raw) -> Any:
    """The native configuration.

    Raises:
        ConfigError: as `Family.native_fields`.
    """
    fields = family.native_fields(raw)
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    return config_class(family.native)(**fields, dtype=dtype, **{ORIGINAL: dict(raw)})


def config_class(model_type: str) -> Any:
    """The configuration's class of a model_type, our own among them.

    Raises:
        KeyError: there is none.
    """
    return BaichuanConfig if model_type == BaichuanConfig.model_type else CONFIG_MAPPING[model_type]


def model_class(config: Any) -> Any:
    """The class of causal language model that a configuration is built as; AutoModelForCausalLM where transformers chooses."""
    if isinstance(config, BaichuanConfig):
        return BaichuanForCausalLM
    return MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), AutoModelForCausalLM)

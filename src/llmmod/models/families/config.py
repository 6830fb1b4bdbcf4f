"""A checkpoint's config.json as the configuration of the native class."""

from __future__ import annotations

from typing import Any

import torch
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
    """The class of causal language model that a native configuration is loaded as."""
    return BaichuanForCausalLM if isinstance(config, BaichuanConfig) else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def initial_model(config: Any, *, dtype: torch.dtype) -> Any:
    """A model of a configuration's initial weights, of any class that transformers has, or our own."""
    if isinstance(config, BaichuanConfig):
        return BaichuanForCausalLM._from_config(config, dtype=dtype)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def original_config(config: Any) -> dict[str, Any] | None:
    """The config.json that a native configuration was made from, None where it was native itself."""
    raw: dict[str, Any] | None = getattr(config, ORIGINAL, None)
    return config.to_dict() if raw is None and isinstance(config, BaichuanConfig) else raw

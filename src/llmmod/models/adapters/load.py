"""Adapters from disk: `finetune.adapters`, merged in order or added to a model, and removed again."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper

from llmmod.config.validate.model import NOT_MERGED
from llmmod.errors import ConfigError, Problem, one_line
from llmmod.files.paths import resolve_path
from llmmod.models.adapters.base_changing_init import (
    changes_base,
    loftq_anywhere,
    remember_initial,
    restore_biases,
    restore_initial_adapter,
)
from llmmod.models.adapters.lora import quiet_peft
from llmmod.models.adapters.merge import merge_or_stack, use_stacked_norms
from llmmod.models.families.convert import native_adapter
from llmmod.models.reward import HEAD, is_reward_model, mark_trained, restore_language_config

log = logging.getLogger(__name__)

_KEY = "finetune.adapters"


def merge_adapters(model: Any, adapters: Sequence[str]) -> Any:
    """A model with every adapter of a chain merged into it, in order. The model is changed in place.

    Args:
        model: a PreTrainedModel. On quantized weights, adapters aren't merged but stacked: `merge_or_stack`.
        adapters: directories with an adapter_config.json, or hub ids.

    Returns:
        A PreTrainedModel.

    Raises:
        ConfigError: an adapter doesn't exist, or was trained on another base.
    """
    for number, path in enumerate(adapters):
        model = merge_or_stack(load_adapter(model, path, key=f"{_KEY}[{number}]"))
    return model


def load_adapter(model: Any, path: str, *, trainable: bool = False, key: str = _KEY) -> Any:
    """A model with an adapter on its weights.

    Args:
        model: a PreTrainedModel.
        path: the adapter's directory, or a hub id.
        trainable: whether the adapter is trained further; its base is always frozen.
        key: the configuration key it was typed for.

    Returns:
        A PeftModel.

    Raises:
        ConfigError: the adapter doesn't exist, or was trained on another base.
    """
    config, state = read_adapter(path, key)
    for name, why in NOT_MERGED.items():
        if getattr(config, name, None):
            raise ConfigError(Problem(key, f"the adapter '{path}' has {name}, but {why}", do="Train another without it"))
    _check_head(config, state, model, path, key)
    state = native_adapter(model, config, state)
    config.inference_mode = not trainable
    # Shapes distinguish architectures, but not two models of the same one, and names change when directories move.
    trained_on, here = config.base_model_name_or_path, model.name_or_path
    if trained_on and here and trained_on != here:
        log.warning("%s: the adapter '%s' was trained on '%s', but is put on '%s'.", _KEY, path, trained_on, here)
    if hasattr(config, "init_lora_weights") and not changes_base(config.init_lora_weights):
        config.init_lora_weights = False  # its values are read from the file
    try:
        with quiet_peft(), loftq_anywhere():
            adapted = save_adapter_alone(PeftModel(model, config))
        remember_initial(adapted)
        use_stacked_norms(adapted, new=False)
        result = set_peft_model_state_dict(adapted, state)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(_misfit(path, model, one_line(error, 200), key)) from error
    missing = _not_filled(adapted, [name for name in result.missing_keys if ".default" in name])
    if missing or result.unexpected_keys:
        odd = f"{len(missing)} of its weights are missing, {len(result.unexpected_keys)} are unexpected"
        raise ConfigError(_misfit(path, model, odd, key))
    if getattr(config, "lora_bias", False) and any(_lacks_bias(layer) for layer in adapted.modules()):
        found = f"the adapter '{path}' has lora_bias, but layers of {type(model).__name__} don't have a bias for a merge"
        raise ConfigError(Problem(key, found, do="Train another without it"))
    if _has_head(state):
        mark_trained(adapted)
    return adapted.train(trainable)


def _not_filled(adapted: Any, missing: Sequence[str]) -> list[str]:
    """An adapter's missing weights that aren't tied to a weight in the file: of tied head and embeddings, one is saved."""
    parameters = dict(adapted.named_parameters(remove_duplicate=False))
    filled = {id(parameter) for name, parameter in parameters.items() if name not in missing}
    return [name for name in missing if id(parameters.get(name)) not in filled]


def _lacks_bias(layer: Any) -> bool:
    return isinstance(layer, BaseTunerLayer) and getattr(layer.get_base_layer(), "bias", None) is None


def unload_adapter(adapted: Any) -> Any:
    """The base model of a PeftModel without adapters, with its own layers and biases; the PeftModel can't be used afterwards."""
    for name, module in list(adapted.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # peft's own `unload` would leave their trained copies
            place, _, own_name = name.rpartition(".")
            setattr(adapted.get_submodule(place), own_name, module.original_module)
    base = adapted.unload()
    restore_biases(adapted)
    restore_language_config(base)
    return base


def restore_base_model(adapted: Any) -> Any:
    """The original base model of an untrained PeftModel; the PeftModel can't be used afterwards.

    Args:
        adapted: whose base isn't lost (`has_lost_base`).
    """
    if not restore_initial_adapter(adapted):
        return unload_adapter(adapted)
    with quiet_peft():  # moves the adapter's initial values back into the weights
        return adapted.merge_and_unload()


def save_adapter_alone(adapted: Any) -> Any:
    """The same PeftModel, set to save only its adapter.

    peft 0.21 also saves embeddings and head if its base's config.json has another vocabulary size than the model, or seems to: a layout of
    2023 has another name for it. Vocabularies aren't changed here, and trained embeddings are in the adapter anyway.
    """
    adapted.save_pretrained = functools.partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def read_adapter(path: str, key: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """An adapter's configuration, and parameter name -> tensor on the CPU.

    Raises:
        ConfigError: it doesn't exist, or can't be read.
    """
    located = resolve_path(path, key=key)
    if isinstance(located, Path) and not (located / "adapter_config.json").is_file():
        what = "a model, not an adapter" if (located / "config.json").is_file() else "not an adapter: it doesn't have adapter_config.json"
        raise ConfigError(Problem(key, f"'{path}' is {what}"))
    try:
        return PeftConfig.from_pretrained(str(located)), load_peft_weights(str(located), device="cpu")
    except (ImportError, OSError, ValueError, KeyError, TypeError) as error:  # LoftQ's needs scipy
        raise ConfigError(Problem(key, f"the adapter in '{path}' can't be read: {one_line(error, 200)}")) from error


def _has_head(state: Mapping[str, Any]) -> bool:
    """Whether a reward head is among an adapter's weights."""
    return any(name.split(".")[-2:-1] == [HEAD] for name in state)


def _check_head(config: Any, state: Mapping[str, Any], model: Any, path: str, key: str) -> None:
    """Refuse a reward model's adapter without its head, and one on a language model."""
    if HEAD in (getattr(config, "modules_to_save", None) or ()) and not _has_head(state):
        raise ConfigError(Problem(key, f"the adapter '{path}' doesn't have a reward head, and a random one would give random scores"))
    if _has_head(state) and not is_reward_model(model):
        found = f"the adapter '{path}' is a reward model's, which gives scores and doesn't generate text"
        do = "Give one trained by stage=sft or another stage for language models, or use this one with stage=rm"
        raise ConfigError(Problem(key, found, do=do))


def _misfit(path: str, model: Any, reason: str, key: str) -> Problem:
    found = f"the adapter '{path}' doesn't fit {type(model).__name__} '{model.name_or_path}': {reason[:200]}"
    return Problem(key, found, do="Give the model that it was trained on")

"""`finetune.*` as a peft.LoraConfig, with names of modules, layers and tokens checked against the model.

Only values that differ from the schema's defaults are passed on, so that peft's deprecated fields aren't set. Nested configurations (EVA,
CorDA, LoftQ, …) are dicts in the schema and become peft's classes here: peft builds most of them from dicts too, but ignores unknown keys.
It also ignores most names that don't match.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import peft
import torch
from torch import nn

from llmmod.config.schema.generated.lora import ACCEPTED, LoraConfig
from llmmod.config.schema.model import LoraConf
from llmmod.errors import ConfigError, Problem, did_you_mean
from llmmod.models.adapters.base_changing_init import changes_base
from llmmod.models.loading.structure import decoder_layers
from llmmod.models.loading.tiny import STAND_IN

log = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
_LAYERS = "finetune.layers_to_transform"
# As in peft 0.21 (`_check_lora_target_modules_mamba`): these use a module's weights without calling the module.
_MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_READ_BY_MAMBA = ("out_proj", "conv1d")
_OWN_CLASSES = ("transformers.models.", "transformers_modules.")
_SMALL_RANK = 8  # at most the width of each matrix of a stand-in


def lora_config(conf: LoraConf) -> peft.LoraConfig:
    """The adapter's configuration, only with plain Python values, so that `save_pretrained` can write it.

    Args:
        conf: composed, resolved and converted by `to_object`.

    Raises:
        ConfigError: a nested configuration has an unknown field, or peft refuses the values or their combination.
    """
    default = dataclasses.make_dataclass("Defaults", [], bases=(LoraConfig,))()  # a generated class has no __init__
    names = [f.name for f in dataclasses.fields(LoraConfig) if f.name != "_target_"]
    chosen = {name: getattr(conf, name) for name in names if getattr(conf, name) != getattr(default, name)}
    if conf.init_lora_weights == "loftq":
        chosen.setdefault("loftq_config", {})  # peft requires it, although it has defaults
    nested = {name: _nested(name, value) for name, value in chosen.items() if isinstance(value, dict) and _class_path(name)}
    return _built(peft.LoraConfig, chosen | nested, key="finetune")


def _class_path(name: str) -> str | None:
    """The class for a dict in this field; None if it stays a dict."""
    return next((path for path in ACCEPTED.get(name, ()) if path.startswith("peft.")), None)


def _nested(name: str, value: dict[str, Any]) -> Any:
    module, _, class_name = str(_class_path(name)).rpartition(".")
    cls = getattr(importlib.import_module(module), class_name)
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    unknown = [key for key in value if key not in known]
    if unknown:
        raise ConfigError(Problem(f"finetune.{name}.{key}", "no such field", did_you_mean(str(key), known)) for key in unknown)
    return _built(cls, value, key=f"finetune.{name}")


def _built(cls: type, values: dict[str, Any], *, key: str) -> Any:
    try:
        return cls(**values)
    except (ImportError, TypeError, ValueError) as error:  # loftq needs scipy
        raise ConfigError(Problem(key, f"{cls.__name__} refuses it: {error}")) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """A context without peft 0.21's warning that transformers 5.23 has renamed `is_gradient_checkpointing`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def without_refused(model: Any, conf: LoraConf) -> LoraConf:
    """The configuration in which all-linear leaves out layers that can't have an adapter; other configurations are unchanged.

    These are the layers that peft refuses for Mamba and similar models, and routers: subclasses of linear layers that return more than a
    product.
    """
    if conf.target_modules != ALL_LINEAR or isinstance(conf.exclude_modules, str):
        return conf
    refused = [*(_READ_BY_MAMBA if model.config.model_type in _MAMBA else ()), *_routers(model)]
    if not refused:
        return conf
    said = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in refused))
    log.info("finetune.target_modules: all-linear without %s, which %s doesn't call as linear layers", said, type(model).__name__)
    return replace(conf, exclude_modules=[*dict.fromkeys([*(conf.exclude_modules or []), *refused])])


@torch.no_grad()
def _routers(model: Any) -> list[str]:
    """Names of linear layers of own classes that don't return a tensor."""
    kinds: dict[type, bool] = {nn.Linear: False}
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and type(module).__module__.startswith(_OWN_CLASSES):
            if type(module) not in kinds:
                row = torch.zeros(1, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
                kinds[type(module)] = not isinstance(module(row), torch.Tensor)
            found += [name] if kinds[type(module)] else []
    return found


def fitted_to_stand_in(model: Any, conf: LoraConf) -> LoraConf:
    """The configuration for a rehearsal's tiny model: only its existing layers, or its last one, and ranks that fit.

    For any other model it is unchanged.
    """
    if not getattr(model, STAND_IN, False):
        return conf
    if changes_base(conf.init_lora_weights):
        ranks = {name: min(rank, _SMALL_RANK) for name, rank in (conf.rank_pattern or {}).items()}
        conf = replace(conf, r=min(conf.r, _SMALL_RANK), rank_pattern=ranks)
    if conf.layers_to_transform is None:
        return conf
    depth = len(decoder_layers(model)[1])
    kept = [number for number in _listed(conf.layers_to_transform) if number < depth]
    return replace(conf, layers_to_transform=kept or [depth - 1])


def check_names(model: Any, conf: LoraConf) -> None:
    """Refuse names that the model doesn't have.

    Args:
        model: a PreTrainedModel.
        conf: `finetune.*`, with the names of the model's class.

    Raises:
        ConfigError: modules, layers or tokens that it doesn't have.
    """
    problems = [*_unknown_targets(model, conf.target_modules), *_unknown_modules(model, conf)]
    problems += [*_unknown_layers(model, conf), *_unknown_tokens(model, conf)]
    if problems:
        raise ConfigError(problems)


def check_made(adapted: Any, conf: LoraConf) -> None:
    """Refuse adapters that don't have the configured ranks and alphas.

    Args:
        adapted: a new PeftModel.
        conf: its configuration.

    Raises:
        ConfigError: a pattern doesn't match a module with an adapter, so that it has the default rank; or a rank is higher than that of the
            weight from which the adapter's initial values were taken.
    """
    names = sorted(adapted.targeted_module_names)
    problems = [
        Problem(f"finetune.{field}.{pattern}", f"doesn't match one of the {len(names)} modules with an adapter", _adapted_modules(names))
        for field in ("rank_pattern", "alpha_pattern")
        for pattern in getattr(conf, field) or {}
        if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names)  # as in peft.utils.get_pattern_key
    ]
    problems += list(_ranks_too_high(adapted, names, conf))[:1]
    if problems:
        raise ConfigError(problems)


def _ranks_too_high(adapted: Any, names: Sequence[str], conf: LoraConf) -> Iterator[Problem]:
    for name in names if changes_base(conf.init_lora_weights) else ():
        layer = adapted.get_base_model().get_submodule(name)
        for adapter, matrix in getattr(layer, "lora_A", {}).items():
            if (rank := layer.r[adapter]) != (rows := matrix.weight.shape[0]):
                found = f"{rank} with init_lora_weights={conf.init_lora_weights}, but the weight of {name} has only {rows} singular values"
                yield Problem("finetune.r", found, f"Allowed: up to {rows}, or finetune.rank_pattern for this module")


def _unknown_targets(model: Any, targets: Any) -> Iterator[Problem]:
    """A problem for each name that doesn't match a linear layer; peft refuses only if none matches, and checks expressions."""
    if not isinstance(targets, (list, tuple, set)):
        if isinstance(targets, str) and targets != ALL_LINEAR and targets.isidentifier():
            yield from _unknown_targets(model, [targets])
        return
    # A quantized layer may have a child: its stacked earlier adapters.
    leaves = ((name, module) for name, module in model.named_modules() if not any(module.children()) or isinstance(module, nn.Linear))
    names = [name for name, module in leaves if hasattr(module, "weight")]
    linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)})
    yield from (_no_target(target, model, linear) for target in targets if not _matches(target, names))


def _no_target(target: str, model: Any, linear: list[str]) -> Problem:
    near = did_you_mean(target, linear)
    allowed = near if near.startswith("Allowed") else f"{near} Linear layers: {', '.join(linear)}"
    found = f"{type(model).__name__} doesn't have a module '{target}'"
    return Problem("finetune.target_modules", found, allowed, f"Or use all: {ALL_LINEAR}")


def _unknown_modules(model: Any, conf: LoraConf) -> Iterator[Problem]:
    names = [name for name, _ in model.named_modules() if name]
    for field in ("modules_to_save", "exclude_modules"):
        given = getattr(conf, field)
        for wanted in (name for name in (given if isinstance(given, list) else []) if not _matches(name, names)):
            known = sorted({end for end in (name.rpartition(".")[2] for name in names) if not end.isdigit()})
            yield Problem(f"finetune.{field}", f"{type(model).__name__} doesn't have a module '{wanted}'", did_you_mean(wanted, known))


def _unknown_layers(model: Any, conf: LoraConf) -> Iterator[Problem]:
    depth = len(decoder_layers(model)[1]) if conf.layers_to_transform is not None else 0
    for number in (number for number in _listed(conf.layers_to_transform) if number >= depth):
        yield Problem(_LAYERS, f"{number} is not a layer of {type(model).__name__}, which has {depth}", f"Allowed: 0 to {depth - 1}")


def _unknown_tokens(model: Any, conf: LoraConf) -> Iterator[Problem]:
    rows, given = model.get_input_embeddings().num_embeddings, conf.trainable_token_indices
    for token in (token for token in (given if isinstance(given, list) else []) if not 0 <= token < rows):
        yield Problem("finetune.trainable_token_indices", f"{token} is not a token", f"Allowed: 0 to {rows - 1}")


def _matches(wanted: str, names: Sequence[str]) -> bool:
    return any(name == wanted or name.endswith(f".{wanted}") for name in names)


def _listed(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]


def _adapted_modules(names: Sequence[str]) -> str:
    return f"Modules with an adapter: {', '.join(sorted({name.rpartition('.')[2] for name in names}))}"

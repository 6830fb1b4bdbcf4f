"""Freezing: which layers of a model are trained, and which modules in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from llmmod.errors import ConfigError, Problem, did_you_mean

ALL = "all"


def freeze_layers(model: Any, count: int, *, modules: Sequence[str] = (ALL,), extra: Sequence[str] = ()) -> list[str]:
    """Freeze a model but for some layers.

    Args:
        model: changed in place.
        count: layers to train: the last `count`, or the first `-count` where it is negative.
        modules: what of each such layer: names of modules or parameters in it, or `all`. A name is a whole part of a dotted name:
            `mlp` is `layers.0.mlp.up_proj`, and never something that only contains it.
        extra: names outside of the layers to train as well, e.g. `norm`, `lm_head`, `embed_tokens`.

    Returns:
        The names of the parameters that are trained.

    Raises:
        ConfigError: more layers than there are, none, or names that don't exist.
    """
    prefix, layers = decoder_layers(model)
    chosen = _chosen(count, len(layers))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    inside = {name: parameter for name, parameter in parameters.items() if name.startswith(f"{prefix}.")}
    outside = {name: parameter for name, parameter in parameters.items() if name not in inside}
    own = {name: name.removeprefix(f"{prefix}.").split(".")[1:] for name in inside}  # less the layer's number
    _check_names(modules, own.values(), key="finetune.name_module_trainable", also=ALL)
    _check_names(extra, (name.split(".") for name in outside), key="finetune.extra_trainable")
    trained = [name for name in inside if _number(name, prefix) in chosen and (ALL in modules or set(modules) & set(own[name]))]
    trained += [name for name in outside if set(extra) & set(name.split("."))]
    model.requires_grad_(False)
    for name in trained:
        parameters[name].requires_grad_(True)
    return trained


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The list that holds a model's layers, and its dotted name: `model.layers`, or `transformer.h`.

    Raises:
        ConfigError: the model has no such list.
    """
    depth = model.config.get_text_config().num_hidden_layers
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not found:
        raise ConfigError(Problem("finetune", f"{type(model).__name__} has no list of {depth} layers, so none can be chosen"))
    return min(found, key=lambda item: item[0].count("."))


def _chosen(count: int, depth: int) -> range:
    key = "finetune.num_layers_trainable"
    if count == 0:
        raise ConfigError(Problem(key, "0 layers would train nothing", "n > 0: the last n; n < 0: the first |n|"))
    if abs(count) > depth:
        raise ConfigError(Problem(key, f"{count}, but the model has {depth} layers", f"Allowed: -{depth} to {depth}, not 0"))
    return range(depth - count, depth) if count > 0 else range(-count)


def _number(name: str, prefix: str) -> int:
    return int(name.removeprefix(f"{prefix}.").split(".")[0])


def _check_names(names: Sequence[str], paths: Iterable[Sequence[str]], *, key: str, also: str = "") -> None:
    known = {part for path in paths for part in path} - {"weight", "bias"} | ({also} if also else set())
    unknown = [name for name in names if name not in known]
    if unknown:
        listed = f"Allowed: {', '.join(sorted(known))}"
        near = (did_you_mean(name, known) for name in unknown)
        raise ConfigError(
            Problem(key, f"no module '{name}'", n if n.startswith("Allowed") else f"{n} {listed}".strip())
            for name, n in zip(unknown, near, strict=True)
        )

"""Longer contexts by scaled rotary positions: what `model.rope_scaling` writes into a configuration before its model is built.

`linear` divides each position by the factor (Chen et al. 2023, "Extending Context Window of Large Language Models via Positional
Interpolation"), `dynamic` raises the base once a text is longer than what was trained (NTK-aware scaling), `yarn` scales low frequencies
alone and cools the attention (Peng et al. 2023). transformers computes all three; the configuration carries them into every checkpoint
saved afterwards. By its convention, `max_position_embeddings` stays the trained length for the first two, and is the extended one for
yarn, which has the trained length beside its factor.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from llmmod.errors import ConfigError, Problem

log = logging.getLogger(__name__)

_TYPE, _FACTOR = "model.rope_scaling.type", "model.rope_scaling.factor"
# Types that scale one trained length by one factor; the others (llama3, longrope) were trained scaled.
_PLAIN = frozenset({"default", "linear", "dynamic", "yarn"})
_GLOBAL = "full_attention"  # the layers that attend to everything, where layers differ in their positions
_KEPT = ("rope_theta", "partial_rotary_factor")


def scale_rope(config: Any, *, kind: str, factor: float | None, max_length: int | None) -> None:
    """Let the model of a configuration take `factor` times as many positions as it was trained on. The configuration is changed in place.

    Args:
        config: a PreTrainedConfig whose model isn't built yet. Where layers differ in their positions, those that attend to everything
            are scaled; a sliding window is no longer than before.
        kind: linear, dynamic or yarn. A checkpoint that has been scaled in one of these ways is scaled anew, from its trained length.
        factor: 1 or more; None: `max_length` over the trained length, rounded up.
        max_length: tokens that the model is to take, None where nobody said.

    Raises:
        ConfigError: the model has no rotary positions, or was trained with scaled ones; or the length is none that the factor gives.
    """
    text = config.get_text_config()
    parameters = _global_parameters(text)
    if parameters is None:
        found = f"'{kind}', but a model of type {text.model_type} has no rotary positions to scale"
        raise ConfigError(Problem(_TYPE, found, do="Leave it null"))
    before = parameters.get("rope_type", "default")
    if before not in _PLAIN:
        found = f"'{kind}', but this model was trained with positions scaled another way ({before})"
        raise ConfigError(Problem(_TYPE, found, do="Leave it null, or replace them by model.config.rope_parameters"))
    trained = _trained_length(text, parameters)
    chosen = _factor(factor, trained, max_length)
    new = {name: parameters[name] for name in _KEPT if name in parameters} | {"rope_type": kind, "factor": chosen}
    text.max_position_embeddings = trained
    if kind == "yarn":
        new["original_max_position_embeddings"] = trained
        text.max_position_embeddings = int(trained * chosen)
    # Another dict, since this one may be that of the run's configuration.
    by_layer = parameters is not text.rope_parameters
    text.rope_parameters = {**text.rope_parameters, _GLOBAL: new} if by_layer else new
    log.info("positions scaled (%s) by %g: %d tokens instead of %d", kind, chosen, int(trained * chosen), trained)


def check_scaled(model: Any, kind: str) -> None:
    """Nothing, where a model's positions are scaled as asked for.

    Raises:
        ConfigError: it has no module that read the configuration's scaling.
    """
    types = (getattr(module, "rope_type", None) for module in model.modules())
    if not any(kind in (found.values() if isinstance(found, dict) else (found,)) for found in types):
        found = f"'{kind}', but {type(model).__name__} has no rotary positions to scale"
        raise ConfigError(Problem(_TYPE, found, do="Leave it null"))


def has_rope(config: Any) -> bool:
    """Whether the model of a configuration has rotary positions."""
    return _global_parameters(config.get_text_config()) is not None


def scaled_length(config: Any) -> int | None:
    """How many positions a model takes once its scaling is reckoned in; None where its configuration sets no limit."""
    text = config.get_text_config()
    own = getattr(text, "max_position_embeddings", None)
    parameters = _global_parameters(text) or {}
    if own is not None and parameters.get("rope_type") in ("linear", "dynamic"):
        return int(own * parameters["factor"])
    return own


def _global_parameters(text: Any) -> dict[str, Any] | None:
    """The rope parameters of the layers that attend to everything; None where there are no rotary positions."""
    parameters: dict[str, Any] | None = getattr(text, "rope_parameters", None)
    if not parameters or getattr(text, "alibi", False):
        return None
    nested = text.nested_rope_parameter_keys(parameters)
    return parameters.get(_GLOBAL) if nested else parameters


def _trained_length(text: Any, parameters: dict[str, Any]) -> int:
    if parameters.get("rope_type") == "yarn":
        return int(parameters["original_max_position_embeddings"])
    return int(text.max_position_embeddings)


def _factor(factor: float | None, trained: int, max_length: int | None) -> float:
    """The factor that was asked for, or the smallest whole one that is enough, as LLaMA-Factory took it in 2023."""
    if factor is None:
        if max_length is None:
            raise ConfigError(Problem(_FACTOR, "not set, and no model.model_max_length to work it out from", do="Set one of them"))
        factor = float(math.ceil(max_length / trained))
        if factor == 1:
            log.warning("model.rope_scaling changes nothing: model.model_max_length=%d is within the %d trained", max_length, trained)
    elif max_length is not None and max_length > trained * factor:
        found = f"{factor:g} times the {trained} positions of this model are fewer than model.model_max_length={max_length}"
        raise ConfigError(Problem(_FACTOR, found, do=f"Leave it null: then it is {math.ceil(max_length / trained)}"))
    return float(factor)

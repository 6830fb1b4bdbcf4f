"""Rotary positions: scaled for longer contexts (`model.rope_scaling`), and computed by each text's own length.

`linear` divides each position by the factor (Chen et al. 2023, "Extending Context Window of Large Language Models via Positional
Interpolation"), `dynamic` raises the base for texts longer than the trained length (NTK-aware scaling), `yarn` scales only low frequencies
and lowers the attention's temperature (Peng et al. 2023). transformers computes all three; the configuration saves them in every later
checkpoint. By its convention, `max_position_embeddings` stays the trained length for the first two. For yarn it is the extended length, and
the trained one is stored with the factor.

Two kinds depend on a text's length: `longrope` (Ding et al. 2024, "LongRoPE"; Phi-4-mini) has one set of frequencies for texts within the
trained length and one for longer ones, `dynamic` raises the base in proportion to the length. transformers (5.23) uses the longest text of
a batch, so in a packed row one long example changes the short ones; and for `dynamic` it keeps the base of the longest text so far, whereas
the code of 2023 computed it for each text. `use_per_sequence_rope` makes both depend on each text alone. Several rows still use the longest
of them: a cache that is filled row by row must have one kind of positions.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from llmmod.errors import ConfigError, Problem

log = logging.getLogger(__name__)

_TYPE, _FACTOR = "model.rope_scaling.type", "model.rope_scaling.factor"
# Types that scale the trained length by a factor; the others (llama3, longrope) were trained with scaling.
_PLAIN = frozenset({"default", "linear", "dynamic", "yarn"})
# Types whose positions change with a text's length.
_BY_LENGTH = frozenset({"longrope", "dynamic"})
_GLOBAL = "full_attention"  # the layers with full attention, in models whose layers have different positions
_KEPT = ("rope_theta", "partial_rotary_factor")


def scale_rope(config: Any, *, kind: str, factor: float | None, max_length: int | None) -> None:
    """Scale a configuration's positions to `factor` times the trained length. Changes the configuration in place.

    Args:
        config: a PreTrainedConfig whose model isn't built yet. If layers have different positions, those with full attention are scaled; a
            sliding window stays as long as before.
        kind: linear, dynamic or yarn. A checkpoint that was scaled in one of these ways is scaled again, from its trained length.
        factor: at least 1; None: `max_length` divided by the trained length, rounded up.
        max_length: tokens that the model should accept; None: not set.

    Raises:
        ConfigError: the model doesn't have rotary positions, or was trained with scaled ones; or the factor is too small for `max_length`.
    """
    text = config.get_text_config()
    parameters = _global_parameters(text)
    if parameters is None:
        found = f"'{kind}', but a model of type {text.model_type} doesn't have rotary positions to scale"
        raise ConfigError(Problem(_TYPE, found, do="Leave it null"))
    before = parameters.get("rope_type", "default")
    if before not in _PLAIN:
        found = f"'{kind}', but this model was trained with another scaling of positions ({before})"
        raise ConfigError(Problem(_TYPE, found, do="Leave it null, or replace them by model.config.rope_parameters"))
    trained = _trained_length(text, parameters)
    chosen = _factor(factor, trained, max_length)
    new = {name: parameters[name] for name in _KEPT if name in parameters} | {"rope_type": kind, "factor": chosen}
    text.max_position_embeddings = trained
    if kind == "yarn":
        new["original_max_position_embeddings"] = trained
        text.max_position_embeddings = int(trained * chosen)
    # A new dict, since this one may belong to the run's configuration.
    by_layer = parameters is not text.rope_parameters
    text.rope_parameters = {**text.rope_parameters, _GLOBAL: new} if by_layer else new
    log.info("positions scaled (%s) by %g: %d tokens instead of %d", kind, chosen, int(trained * chosen), trained)


def check_scaled(model: Any, kind: str) -> None:
    """Refuse a model whose positions are not scaled as configured.

    Raises:
        ConfigError: its modules don't use the configuration's scaling.
    """
    types = (getattr(module, "rope_type", None) for module in model.modules())
    if not any(kind in (found.values() if isinstance(found, dict) else (found,)) for found in types):
        found = f"'{kind}', but {type(model).__name__} doesn't have rotary positions to scale"
        raise ConfigError(Problem(_TYPE, found, do="Leave it null"))


def has_rope(config: Any) -> bool:
    """Whether the model of a configuration has rotary positions."""
    return _global_parameters(config.get_text_config()) is not None


def scaled_length(config: Any) -> int | None:
    """The number of positions of a model, with its scaling; None if its configuration doesn't set a limit."""
    text = config.get_text_config()
    own = getattr(text, "max_position_embeddings", None)
    parameters = _global_parameters(text) or {}
    if own is not None and parameters.get("rope_type") in ("linear", "dynamic"):
        return int(own * parameters["factor"])
    return own


def _global_parameters(text: Any) -> dict[str, Any] | None:
    """The rope parameters of the layers with full attention; None without rotary positions."""
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
    """The configured factor, or the smallest whole one that is enough, as in LLaMA-Factory in 2023."""
    if factor is None:
        if max_length is None:
            raise ConfigError(Problem(_FACTOR, "not set, and it can't be computed without model.model_max_length", do="Set one of them"))
        factor = float(math.ceil(max_length / trained))
        if factor == 1:
            log.warning("model.rope_scaling changes nothing: model.model_max_length=%d is within the %d trained", max_length, trained)
    elif max_length is not None and max_length > trained * factor:
        found = f"{factor:g} times the {trained} positions of this model is less than model.model_max_length={max_length}"
        raise ConfigError(Problem(_FACTOR, found, do=f"Leave it null: then it is {math.ceil(max_length / trained)}"))
    return float(factor)


def use_per_sequence_rope(model: Any) -> None:
    """Make a model's positions depend on each text's own length; changes the model in place, if its positions depend on a length."""
    for module in _by_length(model):
        module.forward = functools.partial(_per_sequence_forward, module, type(module).forward)


def depends_on_length(model: Any) -> bool:
    """Whether a model's rotary positions depend on a text's length."""
    return next(_by_length(model), None) is not None


def _by_length(model: Any) -> Iterator[Any]:
    """The modules of a model whose rotary positions depend on a text's length."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if _BY_LENGTH.intersection(kinds.values() if isinstance(kinds, dict) else (kinds,)):
            yield module


def lengths_and_starts(position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each token of a row, the length of its text and the text's start in the row; both int64 [seq].

    Args:
        position_ids: [seq]; a text ends if the next position isn't one more. A text that starts after 0 continues another one's beginning,
            which counts as its own.
    """
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[1:] = position_ids[1:] != position_ids[:-1] + 1
    starts = begins.nonzero()[:, 0]
    ends = torch.cat([starts[1:], starts.new_tensor([len(position_ids)])])
    number = begins.cumsum(0) - 1
    return position_ids[ends - 1][number] + 1, starts[number]


def _per_sequence_forward(
    module: Any,
    stock: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    x: torch.Tensor,
    position_ids: torch.Tensor,  # [batch or 1, seq]
    layer_type: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, [batch or 1, seq, channels], as transformers' own `forward` computes them for each text alone."""
    kind, more = (module.rope_type, {}) if layer_type is None else (module.rope_type[layer_type], {"layer_type": layer_type})
    if kind == "dynamic":
        _reset_dynamic(module, layer_type)
    if kind not in _BY_LENGTH or position_ids.shape[0] > 1:
        return stock(module, x, position_ids, **more)
    border = _unchanged_length(module, layer_type)
    lengths, starts = lengths_and_starts(position_ids[0])
    alike = (lengths > border).long() if kind == "longrope" else lengths.clamp(min=border)
    kinds = sorted(set(alike.tolist()))
    if len(kinds) == 1:
        return stock(module, x, position_ids, **more)
    _refuse_shared_prompt(position_ids[0], alike, lengths, starts, border)
    result: tuple[torch.Tensor, ...] = ()
    for value in kinds:
        chosen = alike == value
        if kind == "dynamic":
            _reset_dynamic(module, layer_type)
        parts = stock(module, x, position_ids[:, chosen], **more)
        result = result or tuple(part.new_empty(1, len(chosen), *part.shape[2:]) for part in parts)
        for whole, part in zip(result, parts, strict=True):
            whole[:, chosen] = part
    return result  # type: ignore[return-value]


def _unchanged_length(module: Any, layer_type: str | None) -> int:
    """The length up to which all texts have the same positions, in tokens."""
    parameters = module.config.rope_parameters
    parameters = parameters if layer_type is None else parameters[layer_type]
    return int(parameters.get("original_max_position_embeddings") or module.original_max_seq_len)


def _reset_dynamic(module: Any, layer_type: str | None) -> None:
    """Reset a module of `dynamic` positions to its state before the first text."""
    prefix = "" if layer_type is None else f"{layer_type}_"
    setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
    original = getattr(module, f"{prefix}original_inv_freq")
    setattr(module, f"{prefix}inv_freq", original.to(getattr(module, f"{prefix}inv_freq").device))


def _refuse_shared_prompt(positions: torch.Tensor, alike: torch.Tensor, lengths: torch.Tensor, starts: torch.Tensor, border: int) -> None:
    """Refuse a row in which an answer shares a prompt whose positions would be different with this answer.

    Args:
        positions, lengths, starts: of each token, [seq].
        alike: equal for tokens whose positions are computed in the same way, [seq].
        border: from `_unchanged_length`.
    """
    trunk = 0
    for start in sorted(set(starts.tolist())):
        if positions[start] == 0:
            trunk = start
        elif alike[start] != alike[trunk]:
            found = (
                f"two answers make texts of {lengths[trunk]} and {lengths[start]} tokens, and beyond {border} the positions of this model "
                "change: they can't share their prompt"
            )
            raise ConfigError(Problem("dataset.cutoff_len", found, do=f"Set it to {border}, or have them padded by training.collator"))

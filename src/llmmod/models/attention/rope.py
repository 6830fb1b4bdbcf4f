"""Rotary positions: scaled for longer contexts (`model.rope_scaling`), and kept to each text's own length.

`linear` divides each position by the factor (Chen et al. 2023, "Extending Context Window of Large Language Models via Positional
Interpolation"), `dynamic` raises the base once a text is longer than what was trained (NTK-aware scaling), `yarn` scales low frequencies
alone and cools the attention (Peng et al. 2023). transformers computes all three; the configuration carries them into every checkpoint
saved afterwards. By its convention, `max_position_embeddings` stays the trained length for the first two, and is the extended one for
yarn, which has the trained length beside its factor.

Two kinds change with a text's length: `longrope` (Ding et al. 2024, "LongRoPE"; Phi-4-mini) has one set of frequencies for texts within the
trained length and one for longer ones, `dynamic` raises the base by how much longer a text is. transformers (5.23) goes by the longest text
of a batch, so that in a packed row one long example changes the short ones; and for `dynamic` it goes on with the base of the longest text
so far, where the code of 2023 worked it out anew for each. `use_per_sequence_rope` has both go by the text itself. Several rows are still
computed alike, by the longest of them: a cache that is filled row by row has to hold one kind of positions.
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
# Types that scale one trained length by one factor; the others (llama3, longrope) were trained scaled.
_PLAIN = frozenset({"default", "linear", "dynamic", "yarn"})
# Types whose positions change with a text's length.
_BY_LENGTH = frozenset({"longrope", "dynamic"})
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
    """Refuse a model whose positions are not scaled as asked for.

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


def use_per_sequence_rope(model: Any) -> None:
    """Have a model's positions go by each text's own length; it is changed in place, unless its positions never change."""
    for module in _by_length(model):
        module.forward = functools.partial(_per_sequence_forward, module, type(module).forward)


def depends_on_length(model: Any) -> bool:
    """Whether a model's rotary positions change with how long a text is."""
    return next(_by_length(model), None) is not None


def _by_length(model: Any) -> Iterator[Any]:
    """The modules of a model whose rotary positions change with a text's length."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if _BY_LENGTH.intersection(kinds.values() if isinstance(kinds, dict) else (kinds,)):
            yield module


def lengths_and_starts(position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each token of a row, how long its text is, and where that begins in the row; both int64 [seq].

    Args:
        position_ids: [seq]; a text ends where the next position isn't one more. One that begins later than 0 goes on from another's
            beginning, which counts as its own.
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
    """Cosines and sines, [batch or 1, seq, channels], as transformers' own `forward` gives them for each text alone."""
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
    """The longest text, in tokens, whose positions are those of the shortest."""
    parameters = module.config.rope_parameters
    parameters = parameters if layer_type is None else parameters[layer_type]
    return int(parameters.get("original_max_position_embeddings") or module.original_max_seq_len)


def _reset_dynamic(module: Any, layer_type: str | None) -> None:
    """Take a module of `dynamic` positions back to what it was before the first text."""
    prefix = "" if layer_type is None else f"{layer_type}_"
    setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
    original = getattr(module, f"{prefix}original_inv_freq")
    setattr(module, f"{prefix}inv_freq", original.to(getattr(module, f"{prefix}inv_freq").device))


def _refuse_shared_prompt(positions: torch.Tensor, alike: torch.Tensor, lengths: torch.Tensor, starts: torch.Tensor, border: int) -> None:
    """Refuse a row in which an answer shares a prompt that stands in it with other positions than it would have before this answer.

    Args:
        positions, lengths, starts: of each token, [seq].
        alike: the same number where positions are computed alike, [seq].
        border: as from `_unchanged_length`.
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

"""The collator of a training: one row of all examples if the model keeps them separate, padded rows otherwise."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from llmmod.data.collators import (
    FlatteningCollator,
    PaddingCollator,
    PreferenceCollator,
    PrefixSharingCollator,
    PrefixSharingRewardCollator,
    RewardCollator,
)
from llmmod.data.dataset.packing import capacity_of
from llmmod.errors import ConfigError, Problem
from llmmod.instantiate import build, locate
from llmmod.models.packing import why_not_packed
from llmmod.trainers.base import StageTrainer

log = logging.getLogger("llmmod.train")
# A collator that puts a whole batch into one row -> the one that pads.
_PADDING: Mapping[Any, type[PaddingCollator | PreferenceCollator | RewardCollator]] = {
    FlatteningCollator: PaddingCollator,
    PrefixSharingCollator: PreferenceCollator,
    PrefixSharingRewardCollator: RewardCollator,
}


def choose_collator(
    node: Mapping[str, Any],
    *,
    model: Any,
    tokenizer: Any,
    train: Any,
    pad_to_multiple_of: int | None = None,
    fixed_rows: int | None = None,
    trainer: str | None = None,
) -> Any:
    """The collator that a configuration names, or its padding counterpart if the model mixes the examples of a row; None if not named.

    Args:
        node: `training.collator`.
        model: the model; decides whether examples of a row stay separate.
        tokenizer: passed to the collator.
        train: the training examples.
        pad_to_multiple_of: `training.pad_to_multiple_of`, tokens.
        fixed_rows: packed rows of a batch, if all batches must have the same shape; None: shapes may differ.
        trainer: the trainer's class, `training.trainer._target_`; None: one of ours.

    Raises:
        ConfigError: the examples are packed, and the model, the trainer or the collator can't keep them apart.
    """
    if not node:
        return None
    check_trainer(trainer, train)
    collator, packed = locate(node["_target_"]), capacity_of(train) is not None
    flattens, reason = collator in _PADDING, None
    if flattens and pad_to_multiple_of is not None:
        reason = "training.pad_to_multiple_of asks for padding"
    elif flattens:
        reason = _why_trainer_mixes(trainer) or why_not_packed(model, branches=collator is not FlatteningCollator, packed=packed)
    elif collator is PaddingCollator and packed:
        reason = "training.collator=PaddingCollator treats a row as one example"
    if reason is not None and packed:
        raise ConfigError(Problem("dataset.packing", f"true, and {reason}", do="Set it to false"))
    arguments: dict[str, Any] = {} if pad_to_multiple_of is None else {"pad_to_multiple_of": pad_to_multiple_of}
    if reason is not None:
        log.info("batches are padded: %s", reason)
        return _PADDING[collator](tokenizer, **arguments)
    if packed and fixed_rows is not None:
        arguments["length"] = fixed_rows * train.capacity
    return build(node, tokenizer=tokenizer, **arguments)


def check_trainer(trainer: str | None, train: Any) -> None:
    """Refuse a trainer in which packed examples would see each other.

    Args:
        trainer: the class, `training.trainer._target_`; None: one of ours.
        train: the training examples.

    Raises:
        ConfigError: they are packed, and the class is not derived from ours.
    """
    if capacity_of(train) is not None and (reason := _why_trainer_mixes(trainer)):
        do = "Derive it from llmmod.trainers.base.StageTrainer, or set dataset.packing=false"
        raise ConfigError(Problem("training.trainer._target_", f"{reason}, and dataset.packing is true", do=do))


def _why_trainer_mixes(trainer: str | None) -> str | None:
    """The reason why the examples of a row see each other in this trainer; None if they don't."""
    if trainer is None:
        return None
    found = locate(trainer)
    ours = isinstance(found, type) and issubclass(found, StageTrainer)
    return None if ours else f"{trainer} doesn't keep the examples of a row apart"

"""How the examples of a batch come together: one after the other in one row where the model keeps them apart, padded elsewhere.

Where a model runs that no trainer has placed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch

from llmmod.data.collators import FlatteningCollator, PaddingCollator
from llmmod.data.dataset.packing import capacity_of
from llmmod.data.preference_collators import PreferenceCollator, PrefixSharingCollator, PrefixSharingRewardCollator, RewardCollator
from llmmod.errors import ConfigError, Problem
from llmmod.instantiate import build, locate
from llmmod.models.packing.segments import why_not_packed
from llmmod.trainers.base import StageTrainer

log = logging.getLogger("llmmod.train")
# What makes a row of many -> what pads them instead.
_ROWS: Mapping[type, type[PaddingCollator | PreferenceCollator | RewardCollator]] = {
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
    """The collator that a configuration names, or one that pads where that makes rows which the model can't have; None for none.

    Args:
        node: `training.collator`.
        model: whose attention is to stay within examples.
        tokenizer: what the collator is built with.
        train: the training examples.
        pad_to_multiple_of: `training.pad_to_multiple_of`, tokens.
        fixed_rows: rows of a batch, where packed ones are all to have one length; None: they needn't.
        trainer: the class that gets the batches, `training.trainer._target_`; None: one of ours.

    Raises:
        ConfigError: the examples are packed, and the model, the trainer or the collator can't keep them apart.
    """
    if not node:
        return None
    padding: dict[str, Any] = {} if pad_to_multiple_of is None else {"pad_to_multiple_of": pad_to_multiple_of}
    check_trainer(trainer, train)
    reason = _why_padded(node, model=model, train=train, pad_to_multiple_of=pad_to_multiple_of, trainer=trainer)
    if reason is None:
        if fixed_rows is not None and capacity_of(train) is not None:
            padding |= {"length": fixed_rows * train.capacity}
            return build(node, tokenizer=tokenizer, **padding)
        return build(node, tokenizer=tokenizer, **({} if _padded(node) else padding))
    if capacity_of(train) is not None:
        raise ConfigError(Problem("dataset.packing", f"true, and {reason}", do="Set it to false"))
    log.info("batches are padded: %s", reason)
    return (_padded(node) or PaddingCollator)(tokenizer, **padding)


def check_trainer(trainer: str | None, train: Any) -> None:
    """Refuse a trainer in which packed examples would see each other.

    Args:
        trainer: the class, `training.trainer._target_`; None: one of ours.
        train: the training examples.

    Raises:
        ConfigError: they are packed, and the class isn't derived from ours.
    """
    if capacity_of(train) is not None and (reason := _mixes(trainer)):
        do = "Derive it from llmmod.trainers.base.StageTrainer, or set dataset.packing=false"
        raise ConfigError(Problem("training.trainer._target_", f"{reason}, and dataset.packing is true", do=do))


def _mixes(trainer: str | None) -> str | None:
    """Why a trainer would let the examples of a row see each other; None where it doesn't."""
    if trainer is None:
        return None
    found = locate(trainer)
    ours = isinstance(found, type) and issubclass(found, StageTrainer)
    return None if ours else f"{trainer} doesn't keep the examples of a row apart"


def _why_padded(
    node: Mapping[str, Any], *, model: Any, train: Any, pad_to_multiple_of: int | None, trainer: str | None = None
) -> str | None:
    """Why the examples of a batch can't stand in one row; None where they can, or where that isn't what is asked for."""
    if _is(node, PaddingCollator) and capacity_of(train) is not None:
        return "training.collator=PaddingCollator takes a row for one example"
    if not _padded(node):
        return None
    if pad_to_multiple_of is not None:
        return "training.pad_to_multiple_of asks for padding"
    return _mixes(trainer) or why_not_packed(model, branches=not _is(node, FlatteningCollator), packed=capacity_of(train) is not None)


def _padded(node: Mapping[str, Any]) -> type[PaddingCollator | PreferenceCollator | RewardCollator] | None:
    """What pads where the model can't have the rows that this collator makes; None where it makes none."""
    return next((padding for rows, padding in _ROWS.items() if _is(node, rows)), None)


def _is(node: Mapping[str, Any], collator: type) -> bool:
    return node.get("_target_") == f"{collator.__module__}.{collator.__qualname__}"


def spans_devices(model: Any) -> bool:
    """Whether a model's parts lie on several devices (`model.device_map`), or wait on the disk or in memory until they are used."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def prepare_for_inference(model: Any, *, use_cpu: bool = False) -> Any:
    """The same model in evaluation mode, on this process's accelerator where there is one and nothing else has placed it.

    Args:
        model: a PreTrainedModel or PeftModel.
        use_cpu: leave an accelerator alone, as `training.use_cpu` asks.
    """
    placed = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False) or model.device.type != "cpu"
    if torch.accelerator.is_available() and not use_cpu and not placed:
        kind = torch.accelerator.current_accelerator()
        assert kind is not None  # is_available() said so
        # As accelerate places processes, several of which may share an accelerator.
        number = int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count()
        model.to(torch.device(kind.type, number))
    return model.eval()

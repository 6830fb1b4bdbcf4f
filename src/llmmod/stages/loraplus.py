"""LoRA+ (Hayou et al. 2024): the matrices B of adapters learn `finetune.loraplus_lr_ratio` times as fast as the matrices A.

peft makes the groups of parameters; the optimizer, its arguments and weight decay are those of `training.*`.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers.trainer_optimizer import is_optimizer_factory

from llmmod.errors import ConfigError, Problem

KEY = "finetune.loraplus_lr_ratio"
# What the Trainer's optimizers that divide the parameters themselves come with.
_OWN_GROUPS = ("params", "model", "optimizer_dict")


def loraplus_optimizer(model: Any, ratio: float, *, cls: Any, arguments: dict[str, Any], args: Any) -> torch.optim.Optimizer:
    """An optimizer with a learning rate of `training.learning_rate` for the matrices A, and `ratio` times that for B.

    Whatever else is trained (`finetune.modules_to_save`) has the rate of A, vectors (biases, DoRA's magnitudes) that of B.

    Args:
        model: a PeftModel.
        ratio: 1 or more.
        cls, arguments: as from Trainer.get_optimizer_cls_and_kwargs.
        args: the trainer's arguments.

    Raises:
        ConfigError: `training.optim` divides the parameters itself.
    """
    if is_optimizer_factory(cls) or any(name in arguments for name in _OWN_GROUPS):
        found = f"{ratio:g}, but training.optim={args.optim} divides the parameters in a way of its own"
        raise ConfigError(Problem(KEY, found, do="Use training.optim=adamw_torch"))
    given = {name: value for name, value in arguments.items() if name != "lr"}
    return create_loraplus_optimizer(  # type: ignore[no-any-return]
        model, cls, lr=args.learning_rate, loraplus_lr_ratio=ratio, loraplus_weight_decay=args.weight_decay, **given
    )

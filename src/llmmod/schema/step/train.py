"""`train`: train, and save what was trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmmod.schema.step import DATA, StepConf


@dataclass
class TrainConf(StepConf):
    """Train, and save the adapter or model."""

    reads: ClassVar[tuple[str, ...]] = (*DATA, "finetune", "training")
    needs_model: ClassVar[bool] = True

    _target_: str = "llmmod.steps.train.Train"

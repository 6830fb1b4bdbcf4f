"""`evaluate`: measure on the held-out examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmmod.schema.step import DATA, StepConf


@dataclass
class EvaluateConf(StepConf):
    """Loss, perplexity and token accuracy on the validation split."""

    reads: ClassVar[tuple[str, ...]] = (*DATA, "finetune.adapters", "training")
    needs_model: ClassVar[bool] = True

    _target_: str = "llmmod.steps.evaluate.Evaluate"

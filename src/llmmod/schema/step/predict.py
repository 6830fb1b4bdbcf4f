"""`predict`: answer the held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from llmmod.schema.step import DATA, SPEAKS, StepConf


@dataclass
class PredictConf(StepConf):
    """Answers to the validation split's prompts, and how close they come to the data's."""

    reads: ClassVar[tuple[str, ...]] = (*DATA, *SPEAKS, "training.predict")
    needs_model: ClassVar[bool] = True

    _target_: str = "llmmod.steps.predict.Predict"
    batch_size: int = 8  # prompts that are answered together
    max_samples: int | None = None  # prompts; None: the whole validation split
    compare_with_base: int = 0  # prompts that the model without its adapter answers too, evenly spread over the split
    # name -> {_target_: a class with update(predict, label) and compute(), see llmmod.protocols.Metric}; null leaves one out
    metrics: dict[str, Any] = field(
        default_factory=lambda: {
            "rouge": {"_target_": "llmmod.metrics.rouge.Rouge"},
            "bleu": {"_target_": "llmmod.metrics.bleu.Bleu"},
        }
    )

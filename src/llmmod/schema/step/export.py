"""`export`: write a complete model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmmod.schema.step import SPEAKS, StepConf


@dataclass
class ExportConf(StepConf):
    """A complete model directory, adapters merged."""

    reads: ClassVar[tuple[str, ...]] = SPEAKS
    needs_model: ClassVar[bool] = True

    _target_: str = "llmmod.steps.export.Export"
    max_shard_size: str = "5GB"  # the size of a weights file at most, with its unit
    layout: str = "native"  # native: transformers' own names; original: the checkpoint's, where it had others
    model_card: bool = True  # write a README.md that says what the model is and how it came about

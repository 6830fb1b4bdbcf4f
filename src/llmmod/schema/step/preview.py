"""`preview`: what training will see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmmod.schema.step import DATA, StepConf


@dataclass
class PreviewConf(StepConf):
    """Examples as training will see them; no model is loaded."""

    # It tells of the run that the same command without pipeline=[preview] makes.
    reads: ClassVar[tuple[str, ...]] = (*DATA, "finetune", "training")

    _target_: str = "llmmod.steps.preview.Preview"
    max_samples: int = 1000  # examples written to preview.jsonl
    on_page: int = 40  # examples shown on preview.html
    in_terminal: int = 3  # examples that the terminal shows

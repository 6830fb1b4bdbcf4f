"""`stage=pt`: pre-training on documents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmmod.schema.training import CONTINUES
from llmmod.schema.training.sft import SftConf


@dataclass
class PtConf(SftConf):
    """Pre-training, or going on with it: every token of a document is learnt, with the trainer of supervised fine-tuning."""

    data_kind: str = "document"
    predict: dict[str, Any] = field(default_factory=lambda: {"_target_": CONTINUES})

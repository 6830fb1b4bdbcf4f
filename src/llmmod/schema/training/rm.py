"""`stage=rm`: reward models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmmod.schema.generated.reward import RewardConfig
from llmmod.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.schema.training import SCORES, StageConf


@dataclass
class RmConf(RewardConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """A reward model with trl's trainer."""

    data_kind: str = "preference"
    head: str = "reward"
    predict: dict[str, Any] = field(default_factory=lambda: {"_target_": SCORES})

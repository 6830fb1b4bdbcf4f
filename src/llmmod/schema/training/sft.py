"""`stage=sft`: supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from llmmod.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.schema.generated.sft import SFTConfig
from llmmod.schema.training import StageConf


@dataclass
class SftConf(SFTConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """Supervised fine-tuning with trl's trainer."""

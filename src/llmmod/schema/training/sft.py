"""`stage=sft`: supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from llmmod.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.schema.generated.sft import SFTConfig
from llmmod.schema.training import StageConf


@dataclass
class SftConf(SFTConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """Supervised fine-tuning with trl's trainer."""

    # A checkpoint, a directory that holds some, or true: the newest of this run. As a str, `true` would become the path 'True'.
    resume_from_checkpoint: bool | str | None = None  # type: ignore[assignment]

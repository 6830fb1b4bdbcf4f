"""`stage=kto`: learning from answers that are each judged good or bad."""

from __future__ import annotations

from dataclasses import dataclass

from llmmod.schema.generated.kto import KTOConfig
from llmmod.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.schema.training import StageConf


@dataclass
class KtoConf(KTOConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """Kahneman-Tversky optimization with trl's trainer."""

    data_kind: str = "judgement"
    # A checkpoint, a directory that holds some, or true: the newest of this run. As a str, `true` would become the path 'True'.
    resume_from_checkpoint: bool | str | None = None  # type: ignore[assignment]

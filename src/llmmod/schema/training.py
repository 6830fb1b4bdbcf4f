"""`training.*`: the stage, its trainer, and every argument of that trainer's own argument class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llmmod.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.schema.generated.sft import SFTConfig


@dataclass
class StageConf:
    """What every stage has besides its trainer's arguments."""

    stage: str = MISSING  # the option's name
    trainer: dict[str, Any] = field(default_factory=dict)  # {_target_: class, …its own arguments}
    collator: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)  # name -> {_target_: a transformers.TrainerCallback, …}


@dataclass
class SftConf(SFTConfig, Seq2SeqTrainingArguments, StageConf):
    """Supervised fine-tuning with trl's trainer."""

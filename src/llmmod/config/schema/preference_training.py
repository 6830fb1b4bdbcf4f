"""The stages that train on preferences: rm (reward models), dpo, and kto (answers that are each judged good or bad)."""

from dataclasses import field
from typing import Any

from llmmod.config.schema.base import wide_dataclass
from llmmod.config.schema.generated.dpo import DPOConfig
from llmmod.config.schema.generated.kto import KTOConfig
from llmmod.config.schema.generated.reward import RewardConfig
from llmmod.config.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.config.schema.training import SCORES, StageConf


@wide_dataclass
class RmConf(RewardConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """A reward model with trl's trainer."""

    data_kind: str = "preference"
    head: str = "reward"
    predict: dict[str, Any] = field(default_factory=lambda: {"_target_": SCORES})


LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down",
    "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
# trl 1.16 documents these only in prose.
CHOICES: dict[str, tuple[str, ...]] = {
    "loss_type": LOSSES,
    "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
}
# Losses that trl also supports with other divergences than the reverse one.
WITH_DIVERGENCE = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")


@wide_dataclass
class DpoConf(DPOConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """Direct preference optimization with trl's trainer."""

    data_kind: str = "preference"
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid"])
    f_divergence_type: str = "reverse_kl"


@wide_dataclass
class KtoConf(KTOConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """Kahneman-Tversky optimization with trl's trainer."""

    data_kind: str = "judgement"
    # A checkpoint, a directory with some, or true: the newest of this run. As a str, `true` would become the path 'True'.
    resume_from_checkpoint: bool | str | None = None  # type: ignore[assignment]

"""`stage=dpo`: direct preference optimization."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmmod.schema.generated.dpo import DPOConfig
from llmmod.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.schema.training import StageConf

LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down",
    "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
# trl 1.16 tells of these only in its prose.
CHOICES: dict[str, tuple[str, ...]] = {
    "loss_type": LOSSES,
    "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
}
# Losses that stay what they are meant to be with another divergence than the reverse one, as trl has it.
WITH_DIVERGENCE = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")


@dataclass
class DpoConf(DPOConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """Direct preference optimization with trl's trainer."""

    data_kind: str = "preference"
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid"])
    f_divergence_type: str = "reverse_kl"

"""`stage=grpo`: group relative policy optimisation against a reward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmmod.schema.generated.grpo import GRPOConfig
from llmmod.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.schema.reward import FROM_DISK, answer_metrics
from llmmod.schema.training import StageConf

# trl 1.16 tells of these only in its prose.
CHOICES: dict[str, tuple[str, ...]] = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # losses that go by `epsilon`


@dataclass
class GrpoFields:
    """What is ours or not as in trl's GRPOConfig: the schema and the arguments of our trainer have it from here."""

    # {path: directory of a reward model or adapter}, {step: an earlier step of the run}, {_target_: function or class, …}, or several by
    # name; nothing: the words that an answer shares with its row's own
    reward: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(FROM_DISK))
    reward_weights: dict[str, float] = field(default_factory=dict)  # name -> weight, 1 where not given
    generation_kwargs: dict[str, Any] = field(default_factory=dict)  # further fields of GenerationConfig for answers
    # What held-out answers are measured by beside their reward, against their rows' own: name -> {_target_: a class with
    # update(predict, label) and compute(), see llmmod.protocols.Metric}; null leaves one out
    metrics: dict[str, Any] = field(default_factory=answer_metrics)
    num_sample_answers: int = 4  # answers of each generation that samples.jsonl shows


@dataclass
class GrpoConf(GrpoFields, GRPOConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """GRPO with trl's losses. `num_generations` answers to a prompt are compared with one another, so there is no value head.

    Answers are sampled for `steps_per_generation` micro-batches at once, and learnt from `num_iterations` times.
    """

    _target_: str = "llmmod.stages.grpo.arguments.GrpoArguments"
    data_kind: str = "prompt"
    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    scale_rewards: str = "group"
    multi_objective_aggregation: str = "sum_then_normalize"

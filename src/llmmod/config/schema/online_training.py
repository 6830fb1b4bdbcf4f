"""`stage=grpo`: group relative policy optimisation against a reward.

`stage=ppo`: proximal policy optimisation against a reward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmmod.config.schema.generated.grpo import GRPOConfig
from llmmod.config.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.config.schema.reward import FROM_DISK, answer_metrics
from llmmod.config.schema.training import StageConf

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

    _target_: str = "llmmod.trainers.online.grpo.GrpoArguments"
    data_kind: str = "prompt"
    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    scale_rewards: str = "group"
    multi_objective_aggregation: str = "sum_then_normalize"


@dataclass
class PpoFields:
    """What PPO can be told, beside what any trainer can: the schema and the arguments of our trainer have it from here.

    The names are those of trl, which had such a trainer until September 2026.
    """

    # A rollout is per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches prompts a process, each answered once;
    # num_ppo_epochs * num_mini_batches optimizer steps learn from it.
    num_ppo_epochs: int = 4  # passes over a rollout
    num_mini_batches: int = 1  # optimizer steps a pass

    max_completion_length: int = 64  # tokens an answer may have
    temperature: float = 1.0  # answers are sampled with; it divides the logits when they are learnt from, too
    top_p: float = 1.0  # answers are sampled from the likeliest tokens that add up to it; below 1, probabilities are not those learnt from
    top_k: int = 0  # answers are sampled from the k likeliest tokens; 0: from all
    generation_kwargs: dict[str, Any] = field(default_factory=dict)  # further fields of GenerationConfig for answers
    generation_batch_size: int | None = None  # answers sampled together; None: a whole rollout, or all to a batch of held-out prompts
    num_generations_eval: int = 1  # answers to each held-out prompt; with more, their mean reward is less uncertain

    # {path: directory of a reward model or adapter}, {step: an earlier step of the run}, {_target_: function or class, …}, or several by
    # name; nothing: the words that an answer shares with its row's own
    reward: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(FROM_DISK))
    reward_weights: dict[str, float] = field(default_factory=dict)  # name -> weight, 1 where not given
    use_score_scaling: bool = False  # divide scores by their running standard deviation
    use_score_norm: bool = False  # take the running mean of scores away before they are divided
    score_clip: float | None = None  # scores stay within ± this, after scaling
    missing_eos_penalty: float | None = None  # what an answer without a terminator loses, after scaling and clipping

    kl_coef: float = 0.05  # reward lost for a nat between policy and reference
    kl_estimator: str = "k1"  # k1: log p - log q; k3: the same on average, and never negative
    target: float | None = None  # nats an answer that kl_coef is steered to (Ziegler et al. 2019); None: it stays as it is
    horizon: float = 10_000.0  # answers in which kl_coef follows
    gamma: float = 1.0  # what a reward is worth one token later
    lam: float = 0.95  # lambda of generalised advantage estimation (Schulman et al. 2016)
    whiten_rewards: bool = False  # scale the rewards of tokens to variance 1
    whiten_advantages: bool = True  # scale a rollout's advantages to mean 0 and variance 1
    cliprange: float = 0.2  # how far from 1 the ratio of new to old probability counts
    cliprange_value: float | None = 0.2  # how far from its old prediction the value head is let; None: anywhere
    vf_coef: float = 0.1  # weight of the value head's loss
    entropy_coef: float = 0.0  # weight of the entropy bonus
    target_kl: float | None = None  # nats a token; an update beyond 1.5 times that ends the rollout, whose prompts are answered anew
    disable_dropout: bool = True  # with dropout, an answer's probability would differ from when it was sampled
    # What held-out answers are measured by beside their reward, against their rows' own: name -> {_target_: a class with
    # update(predict, label) and compute(), see llmmod.protocols.Metric}; null leaves one out
    metrics: dict[str, Any] = field(default_factory=answer_metrics)
    num_sample_answers: int = 4  # answers of each rollout that samples.jsonl shows


@dataclass
class PpoConf(PpoFields, Seq2SeqTrainingArguments, StageConf):
    """PPO with our own trainer."""

    _target_: str = "llmmod.trainers.ppo.trainer.PpoArguments"
    data_kind: str = "prompt"

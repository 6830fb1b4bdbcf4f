"""`stage=grpo` and `stage=ppo`: a model is trained on its own completions, by the rewards that `training.reward` names.

Group relative policy optimization follows trl's GRPOConfig, proximal policy optimization has a schema of its own.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmmod.config.schema.base import wide_dataclass
from llmmod.config.schema.generated.grpo import GRPOConfig
from llmmod.config.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.config.schema.training import StageConf
from llmmod.errors import Problem

# trl 1.16 tells of these only in its prose.
CHOICES: dict[str, tuple[str, ...]] = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # losses that go by `epsilon`

# What one reward says; `weight` stands in `training.reward_weights`.
FROM_DISK = ("path", "step")
SOURCES = (*FROM_DISK, "_target_")
# What trl hands to a function besides, of its trainer or its environments.
_TRLS = ("trainer_state", "log_extra", "log_metric", "environments")
# Where nothing is named: how much of the row's own answer is in an answer.
DEFAULT = {"overlap": {"_target_": "llmmod.rewards.overlap"}}


def answer_metrics() -> dict[str, Any]:
    """What held-out answers are measured by beside their reward: what a reward model can't be fooled about."""
    names = {"rouge": "rouge.Rouge", "exact": "exact.Exact", "length": "length.Length", "repetition": "repetition.Repetition"}
    return {name: {"_target_": f"llmmod.metrics.{target}"} for name, target in names.items()}


@dataclass
class GrpoFields:
    """What is ours or not as in trl's GRPOConfig: the schema and the arguments of our trainer have it from here."""

    # what answers are rewarded by: {path: directory of a reward model or adapter}, {step: an earlier step of the run}, {_target_: function
    # or class, …}, or several by name; nothing: the words that an answer shares with its row's own
    reward: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(FROM_DISK))
    reward_weights: dict[str, float] = field(default_factory=dict)  # the weights of several rewards: name -> weight, 1 where none is given
    generation_kwargs: dict[str, Any] = field(default_factory=dict)  # further fields of GenerationConfig for answers
    # what held-out answers are measured by besides their reward: name -> {_target_: a class with update(predict, label) and compute(), see
    # llmmod.protocols.Metric}; null leaves one out
    metrics: dict[str, Any] = field(default_factory=answer_metrics)
    num_sample_answers: int = 4  # how many answers of each generation samples.jsonl shows


@wide_dataclass
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
    """PPO's own arguments. Both the schema and the arguments of our trainer take them from here.

    The names are those of trl, which had such a trainer until September 2026.
    """

    # A rollout is per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches prompts a process, each answered once;
    # num_ppo_epochs * num_mini_batches optimizer steps learn from it.
    num_ppo_epochs: int = 4  # how many times a rollout is learnt from
    num_mini_batches: int = 1  # optimizer steps in each pass over a rollout

    max_completion_length: int = 64  # the longest answer, in tokens
    temperature: float = 1.0  # the temperature that answers are sampled with; it divides the logits in the loss too
    # sample only from the likeliest tokens that add up to this; below 1 the loss sees other probabilities than the sampling
    top_p: float = 1.0
    top_k: int = 0  # sample only from the k likeliest tokens; 0: from all
    generation_kwargs: dict[str, Any] = field(default_factory=dict)  # further fields of GenerationConfig for answers
    # how many answers are sampled together; None: a whole rollout, or all answers to a batch of held-out prompts
    generation_batch_size: int | None = None
    num_generations_eval: int = 1  # answers to each held-out prompt; more of them make the mean reward less uncertain

    # what answers are rewarded by: {path: directory of a reward model or adapter}, {step: an earlier step of the run}, {_target_: function
    # or class, …}, or several by name; nothing: the words that an answer shares with its row's own
    reward: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(FROM_DISK))
    reward_weights: dict[str, float] = field(default_factory=dict)  # the weights of several rewards: name -> weight, 1 where none is given
    use_score_scaling: bool = False  # divide scores by their running standard deviation
    use_score_norm: bool = False  # take the running mean of scores away before they are divided
    score_clip: float | None = None  # scores are clipped to ± this, after scaling
    missing_eos_penalty: float | None = None  # what an answer without a terminator loses, after scaling and clipping

    kl_coef: float = 0.05  # how much reward a nat between policy and reference costs
    kl_estimator: str = "k1"  # the estimator of the KL: k1 is log p - log q, k3 is the same on average and never negative
    target: float | None = None  # the KL in nats per answer that kl_coef is steered to (Ziegler et al. 2019); None: kl_coef stays as it is
    horizon: float = 10_000.0  # over how many answers kl_coef follows
    gamma: float = 1.0  # the discount of a reward for each token
    lam: float = 0.95  # lambda of generalised advantage estimation (Schulman et al. 2016)
    whiten_rewards: bool = False  # scale the rewards of tokens to variance 1
    whiten_advantages: bool = True  # scale a rollout's advantages to mean 0 and variance 1
    cliprange: float = 0.2  # how far the ratio of new to old probability may go from 1
    cliprange_value: float | None = 0.2  # how far the value head may go from its old prediction; None: anywhere
    vf_coef: float = 0.1  # the weight of the value head's loss
    entropy_coef: float = 0.0  # the weight of the entropy bonus
    # an update beyond 1.5 times this KL, in nats per token, ends the rollout, and its prompts are answered anew
    target_kl: float | None = None
    disable_dropout: bool = True  # train without dropout; with it, an answer's probability would differ from when it was sampled
    # what held-out answers are measured by besides their reward: name -> {_target_: a class with update(predict, label) and compute(), see
    # llmmod.protocols.Metric}; null leaves one out
    metrics: dict[str, Any] = field(default_factory=answer_metrics)
    num_sample_answers: int = 4  # how many answers of each rollout samples.jsonl shows


@wide_dataclass
class PpoConf(PpoFields, Seq2SeqTrainingArguments, StageConf):
    """PPO with our own trainer."""

    _target_: str = "llmmod.trainers.ppo.trainer.PpoArguments"
    data_kind: str = "prompt"


def reward_nodes(conf: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> what that reward is: `{path: directory}`, `{step: name}` or `{_target_: dotted path, …}`.

    Args:
        conf: `training.reward`: one of these itself, which is called `reward` then, or several by name, of which null leaves one out;
            nothing at all means `DEFAULT`.
    """
    given = {str(name): node for name, node in conf.items() if node is not None}
    if any(source in given for source in SOURCES):
        return {"reward": given}
    return {name: dict(node) for name, node in (given if set(conf) - set(SOURCES) else DEFAULT).items()}


def rehearsed(conf: Mapping[str, Any]) -> dict[str, Any]:
    """`training.reward` in a rehearsal: a reward model on the disk was made for a real model and can't read what a tiny one writes."""
    return {name: node for name, node in reward_nodes(conf).items() if "path" not in node}


def unfit(key: str, target: str, *, awaited: bool, required: Collection[str]) -> Problem | None:
    """Why a function can't be asked, although trl's GRPO could ask it.

    Args:
        key: of the reward.
        target: its dotted path.
        awaited: whether it is an `async def`.
        required: its arguments without a default that the configuration doesn't give.
    """
    if awaited:
        return Problem(key, f"{target} is an async def, and a reward is called and not awaited", do="Make it a plain function")
    needed = [name for name in _TRLS if name in required]
    if needed:
        found = f"{target} can't do without {' and '.join(needed)}, which trl's own trainer hands in and this one doesn't"
        return Problem(key, found, do=f"Give it a default: {', '.join(f'{name}=None' for name in needed)}")
    return None

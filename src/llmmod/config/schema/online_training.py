"""`stage=grpo` and `stage=ppo`: a model is trained on its own completions, with the rewards that `training.reward` names.

Group relative policy optimization follows trl's GRPOConfig, proximal policy optimization has a schema of its own.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from llmmod.config.schema.base import Table, wide_dataclass
from llmmod.config.schema.generated.grpo import GRPOConfig
from llmmod.config.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.config.schema.training import StageConf
from llmmod.errors import Problem

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # losses that use `epsilon`

# The sources of a reward; its weight is in `training.reward_weights`.
FROM_DISK = ("path", "step")
SOURCES = (*FROM_DISK, "_target_")
# Further arguments that trl passes to a function, from its trainer or its environments.
_TRLS = ("trainer_state", "log_extra", "log_metric", "environments")
# The default reward: the words that an answer shares with its row's own answer.
DEFAULT = {"overlap": {"_target_": "llmmod.rewards.overlap"}}


def answer_metrics() -> dict[str, Any]:
    """The metrics of held-out answers besides their reward, to detect that the reward model is exploited."""
    return {name: {"_target_": f"llmmod.metrics.{name.capitalize()}"} for name in ("rouge", "exact", "length", "repetition")}


@dataclass
class GrpoFields:
    """The fields that trl's GRPOConfig doesn't have or has differently, for the schema and for our trainer's arguments."""

    # the reward of answers: {path: directory of a reward model or adapter}, {step: an earlier step of the run}, {_target_: function
    # or class, …}, or several by name; by default the words that an answer shares with its row's own
    reward: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(FROM_DISK))
    reward_weights: dict[str, float] = field(default_factory=dict)  # the weights of several rewards: name -> weight, 1 where none is given
    generation_kwargs: dict[str, Any] = field(default_factory=dict)  # further fields of GenerationConfig for answers
    # the metrics of held-out answers besides their reward: name -> {_target_: a class with update(predict, label) and compute(), see
    # llmmod.protocols.Metric}; null leaves one out
    metrics: dict[str, Any] = field(default_factory=answer_metrics)
    num_sample_answers: int = 4  # how many answers of each generation samples.jsonl shows


@wide_dataclass
class GrpoConf(GrpoFields, GRPOConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """GRPO with trl's losses. It compares `num_generations` answers to a prompt with each other, so it doesn't need a value head.

    Answers are sampled for `steps_per_generation` micro-batches at once, and trained on `num_iterations` times.
    """

    # trl 1.16 documents these only in prose.
    CHOICES: ClassVar[Table] = {
        "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"),
        "importance_sampling_level": ("token", "sequence"),
        "scale_rewards": ("group", "batch", "none"),
        "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    }

    _target_: str = "llmmod.trainers.online.grpo.GrpoArguments"
    data_kind: str = "prompt"
    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    scale_rewards: str = "group"
    multi_objective_aggregation: str = "sum_then_normalize"


@dataclass
class PpoFields:
    """PPO's own arguments, for the schema and for our trainer's arguments.

    The names are those of trl, which had such a trainer until September 2026.
    """

    # A rollout has per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches prompts per process, each answered once;
    # num_ppo_epochs * num_mini_batches optimizer steps train on it.
    num_ppo_epochs: int = 4  # how many times a rollout is trained on
    num_mini_batches: int = 1  # optimizer steps in each pass over a rollout

    max_completion_length: int = 64  # the maximum length of an answer, in tokens
    temperature: float = 1.0  # the temperature of sampling; it divides the logits in the loss too
    # sample only from the likeliest tokens that add up to this; below 1 the loss has other probabilities than the sampling
    top_p: float = 1.0
    top_k: int = 0  # sample only from the k likeliest tokens; 0: from all
    generation_kwargs: dict[str, Any] = field(default_factory=dict)  # further fields of GenerationConfig for answers
    # how many answers are sampled together; None: a whole rollout, or all answers to a batch of held-out prompts
    generation_batch_size: int | None = None
    num_generations_eval: int = 1  # answers to each held-out prompt; with more, the mean reward is more exact

    # the reward of answers: {path: directory of a reward model or adapter}, {step: an earlier step of the run}, {_target_: function
    # or class, …}, or several by name; by default the words that an answer shares with its row's own
    reward: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(FROM_DISK))
    reward_weights: dict[str, float] = field(default_factory=dict)  # the weights of several rewards: name -> weight, 1 where none is given
    use_score_scaling: bool = False  # divide scores by their running standard deviation
    use_score_norm: bool = False  # subtract the running mean of scores before they are divided
    score_clip: float | None = None  # scores are clipped to ± this, after scaling
    missing_eos_penalty: float | None = None  # the penalty of an answer without a terminator, after scaling and clipping

    kl_coef: float = 0.05  # the cost in reward of a nat between policy and reference
    kl_estimator: str = "k1"  # the estimator of the KL: k1 is log p - log q, k3 is the same on average and never negative
    target: float | None = None  # the KL in nats per answer to which kl_coef is adapted (Ziegler et al. 2019); None: kl_coef is constant
    horizon: float = 10_000.0  # the number of answers over which kl_coef adapts
    gamma: float = 1.0  # the discount of a reward for each token
    lam: float = 0.95  # lambda of generalised advantage estimation (Schulman et al. 2016)
    whiten_rewards: bool = False  # scale the rewards of tokens to variance 1
    whiten_advantages: bool = True  # scale a rollout's advantages to mean 0 and variance 1
    cliprange: float = 0.2  # how far the ratio of new to old probability may go from 1
    cliprange_value: float | None = 0.2  # how far the value head may go from its old prediction; None: anywhere
    vf_coef: float = 0.1  # the weight of the value head's loss
    entropy_coef: float = 0.0  # the weight of the entropy bonus
    # an update beyond 1.5 times this KL, in nats per token, ends the rollout, and its prompts are answered again
    target_kl: float | None = None
    disable_dropout: bool = True  # train without dropout; with it, an answer's probability would differ from the one at sampling
    # the metrics of held-out answers besides their reward: name -> {_target_: a class with update(predict, label) and compute(), see
    # llmmod.protocols.Metric}; null leaves one out
    metrics: dict[str, Any] = field(default_factory=answer_metrics)
    num_sample_answers: int = 4  # how many answers of each rollout samples.jsonl shows


@wide_dataclass
class PpoConf(PpoFields, Seq2SeqTrainingArguments, StageConf):
    """PPO with our own trainer."""

    _target_: str = "llmmod.trainers.ppo.trainer.PpoArguments"
    data_kind: str = "prompt"


def reward_nodes(conf: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> reward: `{path: directory}`, `{step: name}` or `{_target_: dotted path, …}`.

    Args:
        conf: `training.reward`: one of these itself, which is called `reward` then, or several by name, of which null leaves one out;
            nothing at all means `DEFAULT`.
    """
    given = {str(name): node for name, node in conf.items() if node is not None}
    if any(source in given for source in SOURCES):
        return {"reward": given}
    return {name: dict(node) for name, node in (given if set(conf) - set(SOURCES) else DEFAULT).items()}


def rehearsed(conf: Mapping[str, Any]) -> dict[str, Any]:
    """`training.reward` in a rehearsal: a reward model on the disk fits a real model, and can't score a tiny one's texts."""
    return {name: node for name, node in reward_nodes(conf).items() if "path" not in node}


def unfit(key: str, target: str, *, awaited: bool, required: Collection[str]) -> Problem | None:
    """The problem of a function that can't be called here, although trl's GRPO could call it.

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

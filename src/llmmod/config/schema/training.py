"""`training.*`: the stage, its trainer, and every argument of that trainer's own argument class.

Some stages train on the data's texts: sft (supervised fine-tuning), pt (pre-training on documents), rm (reward models), dpo, and kto
(answers that are each judged good or bad). Two train a model on its own completions, with the rewards that `training.reward` names: grpo
(group relative policy optimization) follows trl's GRPOConfig, ppo (proximal policy optimization) has a schema of its own. Each has its
dataclass, from which `conf/stage/<name>.yaml` starts.
"""

from collections.abc import Collection, Mapping
from dataclasses import field
from typing import Any, ClassVar

from omegaconf import MISSING

from llmmod.config.schema.base import Table, wide_dataclass
from llmmod.config.schema.generated.dpo import DPOConfig
from llmmod.config.schema.generated.grpo import GRPOConfig
from llmmod.config.schema.generated.kto import KTOConfig
from llmmod.config.schema.generated.reward import RewardConfig
from llmmod.config.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.config.schema.generated.sft import SFTConfig
from llmmod.errors import Problem

# Arguments of the trainers' classes whose work llmmod does before or around the trainer: field -> the key for it.
# Set under `training`, they would not have an effect.
SAID_ELSEWHERE: dict[str, str] = {
    "output_dir": "output_dir, at the root",
    "do_train": "pipeline",
    "do_eval": "pipeline",
    "do_predict": "pipeline",
    "model_init_kwargs": "model.kwargs",
    "trust_remote_code": "model.trust_remote_code",
    "chat_template_path": "render",
    "dataset_text_field": "dataset.columns.text",
    "dataset_kwargs": "dataset",
    "dataset_num_proc": "dataset.num_proc",
    "eos_token": "render.stop_words",
    "pad_token": "tokenizer.kwargs",
    "max_length": "dataset.cutoff_len",
    "truncation_mode": "dataset.cutoff_policy",
    "shuffle_dataset": "training.train_sampling_strategy",
    "packing": "dataset.packing",
    "packing_strategy": "dataset.packing",
    "padding_free": "dataset.packing",
    "eval_packing": "dataset.packing",
    "completion_only_loss": "dataset.mask_prompt",
    "assistant_only_loss": "dataset.mask_prompt",
}

ANSWERS = "llmmod.steps.predict.completions.PredictAnswers"
CONTINUES = "llmmod.steps.predict.completions.PredictDocuments"
SCORES = "llmmod.steps.predict.step.PredictRewards"

# Metrics of evaluations and completions for which lower is better, besides those that end in `loss`.
LOWER_IS_BETTER = ("perplexity", "kl", "reward_se", "repeated-4-grams")

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # losses that use `epsilon`
# The sources of a reward; its weight is in `training.reward_weights`.
FROM_DISK = ("path", "step")
SOURCES = (*FROM_DISK, "_target_")
# Further arguments that trl passes to a function, from its trainer or its environments.
_TRLS = ("trainer_state", "log_extra", "log_metric", "environments")
# The default reward: the words that an answer shares with its row's own answer.
DEFAULT = {"overlap": {"_target_": "llmmod.rewards.overlap"}}


@wide_dataclass
class StageConf:
    """The common keys of all stages, besides their trainers' arguments."""

    stage: str = MISSING  # the option's name, used in paths
    data_kind: str = "conversation"  # the kind of record that a row becomes: conversation, document, preference, judgement or prompt
    head: str = "language"  # the model's head: a language-model head, or a reward head (one number for a text)
    # the work of the step `predict` with the trained model: {_target_: a class like the step's, created with its conf and name}
    predict: dict[str, Any] = field(default_factory=lambda: {"_target_": ANSWERS})
    trainer: dict[str, Any] = field(default_factory=dict)  # the trainer: {_target_: its class, …its own arguments}
    # the collator, which makes a batch of examples: {_target_: a class or function, …its own arguments}
    collator: dict[str, Any] = field(default_factory=dict)
    # answer the held-out prompts every so many optimizer steps, as part of an evaluation, with the settings of `generation` and
    # `steps.predict`; their metrics are eval_predict_…; None: don't answer them during training
    predict_steps: int | None = None
    # stop the training after so many evaluations in a row that aren't better than the best; None: don't stop early. The metric is
    # training.metric_for_best_model, by default the loss, or the reward if the model learns from rewards
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0  # by how much an evaluation must be better than the best one to count as better
    # callbacks of the trainer: name -> {_target_: a transformers.TrainerCallback, …its own arguments}
    callbacks: dict[str, Any] = field(default_factory=dict)


@wide_dataclass
class SftConf(SFTConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """Supervised fine-tuning with trl's trainer."""


@wide_dataclass
class PtConf(SftConf):
    """Pre-training, or continuing it: every token of a document is trained, with the trainer of supervised fine-tuning."""

    data_kind: str = "document"
    predict: dict[str, Any] = field(default_factory=lambda: {"_target_": CONTINUES})


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
# Losses that trl also supports with other divergences than the reverse one.
WITH_DIVERGENCE = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")


@wide_dataclass
class DpoConf(DPOConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """Direct preference optimization with trl's trainer."""

    # trl 1.16 documents these only in prose.
    CHOICES: ClassVar[Table] = {
        "loss_type": LOSSES,
        "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    }

    data_kind: str = "preference"
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid"])
    f_divergence_type: str = "reverse_kl"


@wide_dataclass
class KtoConf(KTOConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """Kahneman-Tversky optimization with trl's trainer."""

    data_kind: str = "judgement"
    # A checkpoint, a directory with some, or true: the newest of this run. As a str, `true` would become the path 'True'.
    resume_from_checkpoint: bool | str | None = None  # type: ignore[assignment]


def answer_metrics() -> dict[str, Any]:
    """The metrics of held-out answers besides their reward, to detect that the reward model is exploited."""
    return {name: {"_target_": f"llmmod.metrics.{name.capitalize()}"} for name in ("rouge", "exact", "length", "repetition")}


@wide_dataclass
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


@wide_dataclass
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

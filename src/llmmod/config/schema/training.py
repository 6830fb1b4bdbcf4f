"""`training.*`: the stage, its trainer, and every argument of that trainer's own argument class.

The stages that train on the data's texts are here: sft (supervised fine-tuning), pt (pre-training on documents), rm (reward models), dpo,
and kto (answers that are each judged good or bad). Those that train on the model's own completions are in `online_training`. Each has
its dataclass, from which `conf/stage/<name>.yaml` starts.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from llmmod.config.schema.base import Table, wide_dataclass
from llmmod.config.schema.generated.dpo import DPOConfig
from llmmod.config.schema.generated.kto import KTOConfig
from llmmod.config.schema.generated.reward import RewardConfig
from llmmod.config.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.config.schema.generated.sft import SFTConfig

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


@dataclass
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

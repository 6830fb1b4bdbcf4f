"""`training.*`: the stage, its trainer, and every argument of that trainer's own argument class.

The stages sft (supervised fine-tuning) and pt (pre-training on documents) are here, those of preferences in `preference_training`, those
that train on the model's own completions in `online_training`. Each has its dataclass, from which `conf/stage/<name>.yaml` starts.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llmmod.config.schema.base import wide_dataclass
from llmmod.config.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.config.schema.generated.sft import SFTConfig

# Arguments of the trainers' classes for what llmmod does itself, before or around the trainer: field -> where it is said here.
# Set under `training`, they would change nothing.
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
SCORES = "llmmod.steps.predict.rewards.PredictRewards"

# Metrics of evaluations and completions where less is better, besides those that end in `loss`.
LOWER_IS_BETTER = ("perplexity", "kl", "reward_se", "repeated-4-grams")


@dataclass
class StageConf:
    """What every stage has besides its trainer's arguments."""

    stage: str = MISSING  # the option's name, used in paths
    data_kind: str = "conversation"  # what a row of the dataset becomes: a conversation, document, preference, judgement or prompt
    head: str = "language"  # what stands on top of the model: a language-model head, or a reward head (one number for a text)
    # what the step `predict` does with the trained model: {_target_: a class such as the step's own, made of its conf and name}
    predict: dict[str, Any] = field(default_factory=lambda: {"_target_": ANSWERS})
    trainer: dict[str, Any] = field(default_factory=dict)  # the trainer: {_target_: its class, …its own arguments}
    # what makes a batch of examples: {_target_: a class or function, …its own arguments}
    collator: dict[str, Any] = field(default_factory=dict)
    # how many optimizer steps lie between two times that the model answers the held-out prompts while it trains; they are part of an
    # evaluation, as `generation` and `steps.predict` say, and their metrics are eval_predict_…; None: it answers none
    predict_steps: int | None = None
    # how many evaluations in a row may be no better than the best one before the training stops; None: it doesn't stop for that. What is
    # better, training.metric_for_best_model says, else the loss, or where the model learns from rewards the reward
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0  # by how much an evaluation must be better than the best one to count as better
    # callbacks of the trainer: name -> {_target_: a transformers.TrainerCallback, …its own arguments}
    callbacks: dict[str, Any] = field(default_factory=dict)


@wide_dataclass
class SftConf(SFTConfig, Seq2SeqTrainingArguments, StageConf):  # type: ignore[misc]
    """Supervised fine-tuning with trl's trainer."""


@wide_dataclass
class PtConf(SftConf):
    """Pre-training, or going on with it: every token of a document is learnt, with the trainer of supervised fine-tuning."""

    data_kind: str = "document"
    predict: dict[str, Any] = field(default_factory=lambda: {"_target_": CONTINUES})

"""Arguments of a trainer that aren't read are refused by name, and only if they aren't read."""

from __future__ import annotations

import pytest

from llmmod.config.schema.generated.training_arguments import CHOICES
from llmmod.config.validate import arguments, unread_training

SMOOTH = "training.label_smoothing_factor=0.1"
ONLY_WORDS = "training.label_smoothing_factor: only the losses of pt and sft smooth labels. Leave it out"
ROUNDS = "it would round the weights for the rest of the run. Set model.dtype, or training.bf16, which only rounds products."
SUMS = "an evaluation accumulates sums and doesn't keep predictions."
REFUSED = {
    **{f"smoothing in {stage}": ([f"stage={stage}", SMOOTH], ONLY_WORDS) for stage in ("dpo", "kto", "rm", "ppo", "grpo")},
    "smoothing with another loss": ([SMOOTH, "training.loss_type=dft"], "training.label_smoothing_factor: only the loss nll reads it."),
    "rounded evaluation": (["training.bf16_full_eval=true"], f"training.bf16_full_eval: {ROUNDS}"),
    "prediction loss only": (["training.prediction_loss_only=true"], f"training.prediction_loss_only: {SUMS}"),
    "metrics in batches": (["stage=rm", "training.batch_eval_metrics=true"], f"training.batch_eval_metrics: {SUMS}"),
    "arguments of AdamW": (
        ["training.optim_args='momentum=0.9'"],
        "training.optim_args: this optimizer doesn't have arguments of its own.",
    ),
    "modules of AdamW": (
        ["training.optim_target_modules=[q_proj]"],
        "training.optim_target_modules: only the optimizers galore_… and apollo_… read it.",
    ),
    "betas of SGD": (
        ["training.optim=sgd", "training.adam_beta1=0.5"],
        "training.adam_beta1: this optimizer is not Adam. Set training.optim_args.",
    ),
    "run name without a tracker": (["training.run_name=mine"], "training.run_name: only read with training.report_to."),
    "project": (["training.report_to=[wandb]", "training.project=x"], "training.project: only read with training.report_to=trackio."),
    "order without a best model": (["training.greater_is_better=true"], "training.greater_is_better: a best model is not selected. "),
    "skipping": (["training.ignore_data_skip=true"], "training.ignore_data_skip: only a resumed training reads it. "),
    "filter": (["training.logging_nan_inf_filter=true"], "training.logging_nan_inf_filter: a loss that is not finite ends the training."),
    "keys and values": (["training.use_cache=true"], "training.use_cache: training doesn't cache keys and values. "),
    "signal": (["training.enable_jit_checkpoint=true"], "training.enable_jit_checkpoint: a training that a signal ends always "),
    "split examples": (["training.parallelism_config={cp_size: 2}"], "training.parallelism_config.cp_size: the stages don't split "),
    "order, no workers": (["training.dataloader_in_order=false"], "training.dataloader_in_order: not read with dataloader_num_workers=0."),
    "whole rollouts": (
        ["stage=ppo", "training.dataloader_drop_last=true"],
        "training.dataloader_drop_last: the last rollout of an epoch is filled with the first prompts of the epoch.",
    ),
    "prompts without a tracker": (
        ["stage=grpo", "training.log_completions=true", "training.log_unique_prompts=true"],
        "training.log_unique_prompts: only read with training.report_to.",
    ),
    "two names": (
        ["training.activation_checkpointing=true", "training.gradient_checkpointing=false"],
        "training.gradient_checkpointing: not read, since activation_checkpointing, its new name, is set. ",
    ),
    "lengths of scores": (
        ["stage=rm", "training.predict_with_generate=true", "training.generation_max_length=9"],
        "training.generation_max_length: predict writes scores in this stage instead of answers.",
    ),
    "another order": (
        ["training.sortish_sampler=true", "training.train_sampling_strategy=sequential"],
        "training.sortish_sampler: train_sampling_strategy sets another order. Set one of them.",
    ),
}  # fmt: skip
RIGHT = {
    "smoothing in sft": [SMOOTH],
    "smoothing in pt": ["stage=pt", SMOOTH],
    "off": ["training.bf16_full_eval=false", "training.enable_jit_checkpoint=false", "training.logging_nan_inf_filter=false"],
    "momentum": ["training.optim=sgd", "training.optim_args='momentum=0.9'"],
    "betas": ["training.adam_beta1=0.5"],
    "run's name": ["training.report_to=wandb", "training.run_name=mine"],
    "best": ["training.metric_for_best_model=eval_loss", "training.greater_is_better=false"],
    "a metric of the user's own": [
        "+training.trainer.compute_metrics={_target_: llmmod.metrics.words, _partial_: true}", "training.batch_eval_metrics=true",
    ],
    "a trainer of the user's own": ["stage=dpo", "training.trainer._target_=trl.DPOTrainer", SMOOTH, "training.use_cache=true"],
    "resumed": ["training.resume_from_checkpoint=true", "training.ignore_data_skip=true"],
    "sorted": ["stage=kto", "training.sortish_sampler=true"],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(told, name):
    overrides, message = REFUSED[name]
    lines = told(*overrides)
    assert len(lines) == 1, lines
    assert lines[0].startswith(message)


@pytest.mark.parametrize("name", RIGHT)
def test_right(told, name):
    assert [line for line in told(*RIGHT[name]) if not line.startswith(("training.trainer", "training.resume"))] == []


@pytest.mark.parametrize(
    ("field", "module", "package"),
    [("use_liger_kernel=true", "liger_kernel", "liger-kernel"), ("optim=stable_adamw", "optimi", "torch-optimi")],
)
def test_a_package_that_is_not_there(told, monkeypatch, field, module, package):
    find = arguments.find_module
    monkeypatch.setattr(arguments, "find_module", lambda name, *more: None if name == module else find(name, *more))
    name, _, value = field.partition("=")
    assert told(f"training.{field}") == [f"training.{name}: {value}, but {package} isn't installed. Install it: pip install {package}."]
    monkeypatch.setattr(arguments, "find_module", lambda name, *more: object() if name == module else find(name, *more))
    assert told(f"training.{field}") == []


def matches(optimizer, names):
    return any(optimizer == name or (name[-1] == "_" and optimizer.startswith(name)) for name in names)


def test_the_tables_of_optimizers_are_what_transformers_does(tmp_path):
    """Whether betas and `optim_args` reach each optimizer that is installed."""
    import torch
    from transformers import Trainer, TrainingArguments

    arguments = {"adam_beta1": 0.5, "optim_args": "momentum=0.25,beta1=0.25,lr_decay=0.25"}
    tried = 0
    for optimizer in CHOICES["optim"]:

        def made(optimizer=optimizer, **changes):
            args = TrainingArguments(str(tmp_path), optim=optimizer, report_to="none", use_cpu=True, **changes)
            return Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(2, 2))

        try:
            plain = made()
        except (ImportError, ValueError):
            continue  # not installed, or needs modules that this model doesn't have
        tried += 1
        reads = {name: made(**{name: value}) != plain for name, value in arguments.items()}
        assert reads["adam_beta1"] is not matches(optimizer, unread_training._WITHOUT_ADAM), optimizer
        if matches(optimizer, unread_training._WITHOUT_ARGS):
            assert not reads["optim_args"], optimizer
    assert tried >= 5

"""The best model's metric and its evaluations: refused settings with their messages, and allowed ones."""

from __future__ import annotations

import pytest

BEST = "training.metric_for_best_model="
AT_END = ["training.load_best_model_at_end=true", "training.eval_strategy=steps", "training.save_strategy=steps"]

REFUSED = {
    "an unknown name": (
        [f"{BEST}eval_los"],
        "training.metric_for_best_model: eval_los, which this stage's evaluations don't measure. Did you mean 'loss'?",
    ),
    "another stage's": (["stage=dpo", f"{BEST}perplexity"], "training.metric_for_best_model: perplexity, which this stage's evaluations"),
    "a metric of answers, without answers": (
        [f"{BEST}predict_rouge-l"],
        "training.metric_for_best_model: predict_rouge-l, but the model doesn't answer prompts in training. Set training.predict_steps.",
    ),
    "a metric of answers, misspelt": (
        [f"{BEST}predict_rougeL", "training.predict_steps=2"],
        "training.metric_for_best_model: predict_rougeL, which this stage's evaluations don't measure. Did you mean 'predict_rouge-l'?",
    ),
    "answers of a reward model": (
        ["stage=rm", "training.predict_steps=2"],
        "training.predict_steps: set, but the model of training.stage=rm doesn't write. Leave it out.",
    ),
    "answers without held-out examples": (
        ["training.predict_steps=2", "training.eval_strategy=no", "training.eval_on_start=false", "pipeline=[train]", *(
            f"dataset.{name}=null" for name in ("val_files", "val_split")), "dataset.val_size=0"],
        "training.predict_steps: set, but examples to answer are not held out. Set dataset.val_size.",
    ),
    "a sharded model": (
        ["training.predict_steps=2", "distributed=fsdp", "distributed.processes=2"],
        "training.predict_steps: set, but with distributed=fsdp a process doesn't have the whole model that would answer. Leave it out, or "
        "set",
    ),
    "a best model that was not kept": (
        [*AT_END, "training.eval_steps=10", "training.save_steps=10", "training.predict_steps=15"],
        "training.predict_steps: 15, but checkpoints are written every 10 steps, so the best model might not be saved.",
    ),
    "a schedule that needs the metric each time": (
        [f"{BEST}predict_rouge-l", "training.predict_steps=4", "training.eval_strategy=steps", "training.eval_steps=2",
         "training.lr_scheduler_type=reduce_lr_on_plateau"],
        "training.predict_steps: 4, but training.lr_scheduler_type=reduce_lr_on_plateau needs the answers' metric at every evaluation.",
    ),
    "patience without evaluations": (
        ["training.early_stopping_patience=2", "training.eval_strategy=no"],
        "training.early_stopping_patience: set with training.eval_strategy=no, so it doesn't have an evaluation to compare.",
    ),
    "a patience of 0": (["training.early_stopping_patience=0"], "training.early_stopping_patience: found 0. Allowed: 1 or more."),
    "a threshold without patience": (
        ["training.early_stopping_threshold=0.1"],
        "training.early_stopping_threshold: only read with early_stopping_patience.",
    ),
}  # fmt: skip
RIGHT = {
    "keys that only predictions read": [
        "pipeline=[train]", "training.predict_steps=4", "generation.max_new_tokens=4", "steps.predict.max_samples=3",
        f"{BEST}predict_rouge-l",
    ],
    "by answers": [f"{BEST}predict_rouge-l", "training.predict_steps=4"],
    "with its prefix": [f"{BEST}eval_predict_bleu-4", "training.predict_steps=4"],
    "kept when it is best": [
        "training.load_best_model_at_end=true", "training.eval_strategy=steps", "training.save_strategy=best",
        f"{BEST}predict_rouge-l", "training.predict_steps=7",
    ],
    "kept in time": [*AT_END, "training.eval_steps=5", "training.save_steps=5", "training.predict_steps=10"],
    "patience with answers": ["training.early_stopping_patience=2", "training.eval_strategy=no", "training.predict_steps=3"],
    "a metric of the user's own": [
        f"{BEST}predict_mine", "training.predict_steps=4", "+steps.predict.metrics.mine={_target_: llmmod.metrics.words}",
    ],
    "rewards by name": ["stage=grpo", f"{BEST}rewards/overlap/mean"],
    "a metric of texts": ["stage=ppo", f"{BEST}rouge-l"],
    "a margin": ["stage=dpo", f"{BEST}rewards/margins"],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(told, name):
    overrides, message = REFUSED[name]
    lines = told(*overrides)
    assert [line for line in lines if line.startswith(message)], lines
    assert len(lines) == 1, lines


@pytest.mark.parametrize("name", RIGHT)
def test_right(told, name):
    assert told(*RIGHT[name]) == []

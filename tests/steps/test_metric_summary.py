"""Metrics as text."""

from __future__ import annotations

import pytest

from llmmod.steps.evaluate import evaluation_summary, training_summary


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"train_loss": 0.5}, "training loss 0.5000"),
        ({}, "no step was left to train"),
        ({"train_loss": 0.5, "eval_loss": 2, "eval_token_accuracy": 0.5}, "training loss 0.5000; loss on held-out examples 2.0000 after"),
        (
            {"train_loss": 0.5, "eval_loss_before": 3, "eval_loss": 2, "eval_accuracy_before": 0.5, "eval_accuracy": 0.875},
            "training loss 0.5000; loss on held-out examples 3.0000 before, 2.0000 after; accuracy 50.0% before, 87.5% after",
        ),
        (
            {"train_loss": 0.5, "eval_reward_before": 0.25, "eval_reward": 0.75, "eval_kl": 1.5, "eval_answer_length": 9},
            "training loss 0.5000; reward on held-out prompts 0.250 before, 0.750 after, at a KL of 1.50 nats an answer",
        ),
        (
            {"eval_reward_before": 0.25, "eval_reward_se_before": 0.1, "eval_reward": 0.75, "eval_reward_se": 0.125},
            "no step was left to train; reward on held-out prompts 0.250 ± 0.100 before, 0.750 ± 0.125 after",
        ),
        (
            {"eval_reward": 1, "eval_reward_before": 0, "eval_kl": 2, "eval_exact_before": 50, "eval_exact": 0, "eval_words": 9},
            "no step was left to train; reward on held-out prompts 0.000 before, 1.000 after, at a KL of 2.00 nats a token; "
            "exact answers 50.0 before, 0.0 after",
        ),
        (
            {"train_loss": 0.5, "eval_reward": 0.75, "eval_kl": 1.5},
            "training loss 0.5000; reward on held-out prompts 0.750 after, at a KL of 1.50 nats a token",
        ),
    ],
    ids=["nothing held out", "nothing trained", "nothing before", "before and after", "ppo", "standard errors", "of answers", "grpo"],
)
def test_a_training(metrics, told):
    assert training_summary(metrics) == told


def test_an_evaluation():
    metrics = {"eval_loss": 0.5, "eval_rewards/accuracies": 0.5, "eval_runtime": 3, "train_loss": 1}
    assert evaluation_summary(metrics) == "loss 0.5000, accuracy 50.0%"

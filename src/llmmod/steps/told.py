"""Metrics in words, as the end of a run tells them."""

from __future__ import annotations

from collections.abc import Mapping

# Of a stage's metrics, the ones that are told, and how.
_NAMES = {
    "eval_loss": ("loss", ".4f"),
    "eval_perplexity": ("perplexity", ".3f"),
    "eval_token_accuracy": ("token accuracy", ".1%"),
    "eval_accuracy": ("accuracy", ".1%"),
    "eval_margin": ("margin", ".3f"),
    "eval_rewards/accuracies": ("accuracy", ".1%"),
    "eval_rewards/margins": ("margin", ".3f"),
    "eval_score": ("score", ".3f"),
    "eval_reward": ("reward", ".3f"),
    "eval_kl": ("KL", ".2f"),
    # Of answers, `training.metrics`: percent, but for the words.
    "eval_rouge-l": ("ROUGE-L", ".1f"),
    "eval_exact": ("exact answers", ".1f"),
    "eval_words": ("words an answer", ".1f"),
    "eval_repeated-4-grams": ("repeated 4-grams", ".1f"),
}


def told_of_evaluation(metrics: Mapping[str, float]) -> str:
    """`loss 0.5123, accuracy 88.9%`."""
    return ", ".join(f"{text} {_number(metrics, name)}" for name, (text, _) in _NAMES.items() if name in metrics)


def told_of_training(metrics: Mapping[str, float]) -> str:
    """`training loss 0.2100; loss on held-out examples 0.6931 before, 0.5123 after; accuracy 50.0% before, 88.9% after`."""
    told = [f"training loss {metrics['train_loss']:.4f}"] if "train_loss" in metrics else ["no step was left to train"]
    for name, (text, _) in _NAMES.items():
        has_before = f"{name}_before" in metrics
        if name in metrics and (has_before or name in _ALWAYS):
            earlier = f"{_number(metrics, name, '_before')} before, " if has_before else ""
            told.append(f"{_ALWAYS.get(name, text)} {earlier}{_number(metrics, name)} after")
            if name == "eval_reward" and "eval_kl" in metrics:
                each = "an answer" if "eval_answer_length" in metrics else "a token"  # as ppo counts, and as trl does
                told[-1] += f", at a KL of {metrics['eval_kl']:.2f} nats {each}"
    return "; ".join(told)


def _number(metrics: Mapping[str, float], name: str, when: str = "") -> str:
    """With its standard error, where it has one."""
    _, form = _NAMES[name]
    error = metrics.get(f"{name}_se{when}")
    return f"{metrics[name + when]:{form}}" + ("" if error is None else f" ± {error:{form}}")


# What is told with nothing to compare with, too, and of what it is.
_ALWAYS = {"eval_loss": "loss on held-out examples", "eval_reward": "reward on held-out prompts"}

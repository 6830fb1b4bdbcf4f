"""What a trainer measured, under the names of metrics.json."""

from __future__ import annotations

from typing import Any

# Each evaluation has the one or the other.
_OF_EVALUATION = ("eval_loss", "eval_reward")
# What tells whether a stage's training was of use.
_COMPARED = (
    *_OF_EVALUATION, "eval_reward_se", "eval_token_accuracy", "eval_accuracy", "eval_margin", "eval_rewards/accuracies",
    "eval_rewards/margins",
)  # fmt: skip
_OF_TRAINING = ("train_loss", "train_runtime", "train_steps_per_second")
# How fast an evaluation was says more about the machine than about the model.
_TIMES = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")


def measured(trainer: Any, *, tokens_per_second: float | None = None) -> dict[str, float]:
    """The metrics of a training that has ended.

    Args:
        trainer: after `train()`.
        tokens_per_second: of training alone, where it is known.

    Returns:
        `train_loss` (mean over the steps of this run), `train_runtime` (seconds), `train_steps_per_second`, `train_tokens_per_second`;
        with held-out examples also `eval_loss` and its like, and where it was evaluated before the first step, `eval_loss_before`,
        `eval_accuracy_before`, `eval_reward_before` and their like, and so of what `training.metrics` measures of answers.
    """
    history = trainer.state.log_history
    last: dict[str, Any] = next((entry for entry in reversed(history) if "train_loss" in entry), {})
    metrics: dict[str, float] = {name: float(last[name]) for name in _OF_TRAINING if name in last}
    if tokens_per_second is not None:
        metrics["train_tokens_per_second"] = tokens_per_second
    if trainer.eval_dataset is None:
        return metrics
    first: dict[str, Any] = next((entry for entry in history if _is_evaluation(entry) and entry.get("step") == 0), {})
    compared = (*_COMPARED, *getattr(trainer, "compared", ()))
    before = {f"{name}_before": float(first[name]) for name in compared if name in first}
    return metrics | before | (after_last_step(trainer) or only_measures(trainer.evaluate()))


def after_last_step(trainer: Any) -> dict[str, float]:
    """What the trainer logged of the held-out examples after its last step; nothing where it didn't, or the model is another since."""
    state = trainer.state
    logged = [entry for entry in state.log_history if _is_evaluation(entry) and entry.get("step") == state.global_step]
    # The best checkpoint's weights, loaded at the end, are others than the last step's.
    if not logged or not state.global_step or trainer.args.load_best_model_at_end:
        return {}
    return only_measures(logged[-1])


def _is_evaluation(entry: dict[str, Any]) -> bool:
    return any(name in entry for name in _OF_EVALUATION)


def only_measures(metrics: dict[str, Any]) -> dict[str, float]:
    """Those of an evaluation's metrics that measure the model."""
    return {name: float(value) for name, value in metrics.items() if name.startswith("eval_") and not name.endswith(_TIMES)}

"""Means over whatever came in batches of different sizes, each part weighted by its own size: two numbers a mean are kept.

Mean and spread of numbers that come batch by batch, none of which is kept.

What a trainer measured, under the names of metrics.json.

How much examples count that are several of one row, as the pairs of ranked answers are: each row as much as any other.

An example's weight is 1 by the examples of its row (`examples.answers`). In training they are scaled so that their mean over the dataset
is 1: a step's loss is then of the size that it has without weights, and over an epoch each row counts the same, whichever steps its
examples are in and however few a step has. Of a stream nobody knows that mean, so that it is the step's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from datasets import Dataset

from llmmod.data.examples.answers import WEIGHT


class Means:
    """Weighted means by name."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, values: Mapping[str, float], weight: float = 1.0, *, weights: Mapping[str, float] | None = None) -> None:
        """Take the means of one batch.

        Args:
            values: name -> mean over the batch.
            weight: how much of what the means are over is in the batch.
            weights: the same by name, where that of a name is another.
        """
        for name, value in values.items():
            own = weight if weights is None else weights.get(name, weight)
            total, so_far = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = total + own * value, so_far + own

    def take(self) -> dict[str, float]:
        """The means of all that came since the last time; a name whose weights are all 0 has none."""
        found = {name: total / weight for name, (total, weight) in self._sums.items() if weight}
        self._sums = {}
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return dict(self._sums)

    def load(self, *states: Mapping[str, Any]) -> None:
        """Go on from where one or several others were: from a checkpoint, or from what all processes have."""
        self._sums = {}
        for name, (total, weight) in (item for state in states for item in state.items()):
            before, so_far = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = before + total, so_far + weight


@dataclass
class RunningMoments:
    """Mean and variance of all scores so far, batch by batch (Chan et al. 1979: exact, whatever the batches)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    def update(self, scores: torch.Tensor) -> None:
        """Take a batch of scores, of all processes."""
        values = scores.double().flatten()
        count = values.numel()
        if not count:
            return
        mean, delta, total = values.mean().item(), values.mean().item() - self.mean, self.count + count
        self.squares += (values - mean).square().sum().item() + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        """The standard deviation, without bias (divided by the number less one); 0 of fewer than two scores."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """By how much the mean would scatter if as many others of their kind had been scored; 0 of fewer than two scores."""
        return self.std / math.sqrt(self.count) if self.count else 0.0


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
    return metrics | before | (last_evaluation(trainer) or evaluation_metrics(trainer.evaluate()))


def last_evaluation(trainer: Any) -> dict[str, float]:
    """What the trainer logged of the held-out examples after its last step; nothing where it didn't, or the model is another since."""
    state = trainer.state
    logged = [entry for entry in state.log_history if _is_evaluation(entry) and entry.get("step") == state.global_step]
    # The best checkpoint's weights, loaded at the end, are others than the last step's.
    if not logged or not state.global_step or trainer.args.load_best_model_at_end:
        return {}
    return evaluation_metrics(logged[-1])


def _is_evaluation(entry: dict[str, Any]) -> bool:
    return any(name in entry for name in _OF_EVALUATION)


def evaluation_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """Those of an evaluation's metrics that measure the model."""
    return {name: float(value) for name, value in metrics.items() if name.startswith("eval_") and not name.endswith(_TIMES)}


_ROWS = 10_000


class Weights:
    """The weights of a training's examples.

    Args:
        dataset: the training examples; without the column, all count the same.
    """

    def __init__(self, dataset: Any) -> None:
        self._mean: float | None = _mean(dataset)
        self._of_step = 1.0

    def see_step(self, batches: Sequence[Mapping[str, Any]], accelerator: Any) -> None:
        """Take note of the batches of an optimizer step, of all processes."""
        if self._mean is None and batches and WEIGHT in batches[0]:
            found = torch.cat([batch[WEIGHT].float() for batch in batches])
            sums = accelerator.reduce(torch.stack([found.sum(), found.new_tensor(len(found))]).to(accelerator.device), "sum")
            self._of_step = float(sums[0] / sums[1])

    def of(self, inputs: Mapping[str, Any], *, training: bool) -> torch.Tensor | None:
        """The weights of a batch's examples, float32 [examples]; None where all count the same.

        Args:
            inputs: the batch.
            training: whether they are scaled; sums over an evaluation are divided by the sum of the weights.
        """
        if WEIGHT not in inputs:
            return None
        found: torch.Tensor = inputs[WEIGHT].float()
        return found / (self._of_step if self._mean is None else self._mean) if training else found


def without_weights(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as models read it."""
    return {name: value for name, value in inputs.items() if name != WEIGHT}


def _mean(dataset: Any) -> float | None:
    """The mean weight of a dataset whose examples are known, None of a stream."""
    if not isinstance(dataset, Dataset):
        return None
    if WEIGHT not in dataset.column_names:
        return 1.0
    tables = dataset.select_columns([WEIGHT]).with_format("arrow").iter(batch_size=_ROWS)
    return sum(pc.sum(pc.cast(table[WEIGHT], "float64")).as_py() for table in tables) / len(dataset)

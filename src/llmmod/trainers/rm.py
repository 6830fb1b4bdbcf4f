"""`stage=rm`: trl's RewardTrainer and its loss (Bradley & Terry 1952), on pairs that share their prompt, with exact means.

The prompt of a pair passes through the model once where its attention can branch (`PrefixSharingRewardCollator`). trl's loss is the mean
of the batches' means; here it is the mean over the pairs of an optimizer step. An evaluation's loss, accuracy and margin are means over
all pairs. Pairs of ranked answers are weighted so that each row counts once. Only sums are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional
from trl import RewardTrainer

from llmmod.data.dataset.packing import lengths
from llmmod.models.attention.varlen import KEYS
from llmmod.models.packing import packed_attention
from llmmod.trainers.base import StageTrainer
from llmmod.trainers.distributed import PLACEHOLDER
from llmmod.trainers.means import Means, RowWeights, without_weights
from llmmod.upstream import require_upstream

require_upstream(__name__)

PAIR_METRICS = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")  # the columns of `pair_metrics`
_MARGIN = "margin"


class RmTrainer(StageTrainer, RewardTrainer):  # type: ignore[misc]
    """trl.RewardTrainer for examples with `prompt_ids`, `chosen_ids` and `rejected_ids`, and optionally `margin` and `weight`."""

    loss_is_scaled_for_ga = True

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self._means = Means()
        self._weights = RowWeights(self.train_dataset)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The sum of the losses of the batch's pairs, divided by `num_items_in_batch`, or else by their number."""
        chosen, rejected = score_pairs(model, inputs)
        losses, weights = self._losses(chosen, rejected, inputs), self._weights.of(inputs, training=True)
        if self.model.training:
            found = pair_metrics(losses.detach(), chosen.detach(), rejected.detach())
            means = (found.mean(0) if weights is None else (weights[:, None] * found).sum(0) / weights.sum()).tolist()
            self._means.add(dict(zip(PAIR_METRICS[1:], means[1:], strict=True)), len(losses) if weights is None else float(weights.sum()))
        total = losses.sum() if weights is None else (weights * losses).sum()
        loss = total / (len(losses) if num_items_in_batch is None else num_items_in_batch)
        return (loss, {"rewards": torch.stack([chosen, rejected], dim=1)}) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Add a batch to the sums of `evaluation_loop`."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager(), packed_attention(self.model, inputs):
            chosen, rejected = score_pairs(model, inputs)
            found = pair_metrics(self._losses(chosen, rejected, inputs), chosen, rejected)
        weights = self._weights.of(inputs, training=False)
        weights = torch.ones_like(found[:, :1]) if weights is None else weights[:, None]
        # Gathered by pair, which drops the duplicates that fill the last batch of several processes.
        found = self.accelerator.gather_for_metrics(torch.cat([found * weights, weights], dim=1))
        self._sums += found.cpu().double().sum(0)
        return None, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The library's evaluation, with `<prefix>_loss`, `_accuracy`, `_margin`, `_chosen_reward`, `_rejected_reward` over all pairs."""
        self._sums = torch.zeros(len(PAIR_METRICS) + 1, dtype=torch.float64)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        *sums, weights = self._sums.tolist()
        if weights:
            output.metrics.update({f"{metric_key_prefix}_{name}": value / weights for name, value in zip(PAIR_METRICS, sums, strict=True)})
        return output

    def training_state(self) -> dict[str, Any]:
        """See `ResumableTrainer`; with the means since the last line of the log."""
        return super().training_state() | {"means": self._means.state()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `ResumableTrainer`."""
        super().load_training_state(state)
        self._means.load(state["means"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; in training, with the means over all pairs since the last call."""
        if self.model.training:
            self._metrics["train"].update({name: [value] for name, value in self._means.take().items()})
        super().log(logs, start_time)

    def _losses(self, chosen: torch.Tensor, rejected: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        return pair_losses(chosen, rejected, margin=inputs.get(_MARGIN), centering=self.args.center_rewards_coefficient)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor | None:
        """The pairs of an optimizer step over all processes, divided by the number of processes."""
        self._weights.see_step(batch_samples, self.accelerator)
        if not batch_samples:
            return None
        pairs = torch.tensor(float(sum(map(_pair_count, batch_samples))), device=device)
        return self.accelerator.reduce(pairs, "sum") / self.accelerator.num_processes  # type: ignore[no-any-return]


def pair_metrics(losses: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """`PAIR_METRICS` of each pair, float32 [pairs, 5]; a tie counts as wrong, as in trl."""
    return torch.stack([losses, (chosen > rejected).float(), chosen - rejected, chosen, rejected], dim=1)


def pair_losses(
    chosen: torch.Tensor, rejected: torch.Tensor, *, margin: torch.Tensor | None = None, centering: float | None = None
) -> torch.Tensor:
    """-log p(chosen is better) for each pair, float32 [pairs] (Ouyang et al. 2022, equation 1).

    Args:
        chosen, rejected: rewards, [pairs].
        margin: how much larger the chosen reward should be (Touvron et al. 2023, equation 2).
        centering: weight of the term (chosen + rejected)², which keeps rewards around 0 (Eisenstein et al. 2023, equation 2).
    """
    losses = -functional.logsigmoid(chosen - rejected - (0.0 if margin is None else margin))
    return losses if centering is None else losses + centering * (chosen + rejected) ** 2


def score_pairs(model: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rewards of a batch's chosen and rejected answers, each float32 [pairs].

    Args:
        model: a reward model.
        inputs: a batch of `PrefixSharingRewardCollator`, of `RewardCollator` or of trl's collator.
    """
    given = {name: value for name, value in without_weights(inputs).items() if name != _MARGIN}
    scores = model(**given, use_cache=False).logits.squeeze(-1)
    if KEYS in given:  # one row, pair by pair
        chosen, rejected = scores.unflatten(0, (-1, 2)).unbind(1)
    else:
        chosen, rejected = scores.chunk(2)
    return chosen, rejected


def pair_rewards(
    model: Any, pairs: Any, *, collator: Callable[[list[dict[str, Any]]], dict[str, Any]], batch_size: int
) -> Iterator[list[tuple[int, float, float]]]:
    """Batches of (number of the pair, chosen reward, rejected reward), the longest pairs first.

    Args:
        model: a reward model in evaluation mode.
        pairs: a datasets.Dataset with `prompt_ids`, `chosen_ids`, `rejected_ids`.
        collator: from `choose_collator`.
        batch_size: pairs scored together.
    """
    tokens = lengths(pairs)
    order = sorted(range(len(pairs)), key=lambda number: -tokens[number])
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = collator([pairs[number] for number in numbers])
        batch = {name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        with torch.no_grad(), packed_attention(model, batch):
            chosen, rejected = score_pairs(model, batch)
        yield list(zip(numbers, chosen.tolist(), rejected.tolist(), strict=True))


def _pair_count(inputs: Mapping[str, Any]) -> int:
    if PLACEHOLDER in inputs:
        return 0
    return (len(inputs[KEYS]) - 1 if KEYS in inputs else len(inputs["input_ids"])) // 2

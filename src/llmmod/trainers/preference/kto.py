"""`stage=kto`: Kahneman-Tversky Optimization (Ethayarajh et al. 2024) with trl's trainer and losses, on completions labelled good or bad.

The loss `kto` estimates the KL divergence from the mismatched pairs of a batch (`KTOCollator`), so it depends on the batches. Everything
else is a mean over the examples of an optimizer step, or over all examples of an evaluation. Ranked answers are weighted so that each row
counts once in the loss, in rewards and in log-probabilities; metrics of tokens and the estimate of the KL are unweighted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from trl import KTOTrainer

from llmmod.errors import ConfigError, Problem
from llmmod.trainers.distributed import PLACEHOLDER
from llmmod.trainers.efficient import efficient_head
from llmmod.trainers.means import Means, without_weights
from llmmod.trainers.preference.base import ReferenceTrainer
from llmmod.upstream import require_upstream

require_upstream(__name__)


class KtoTrainer(ReferenceTrainer, KTOTrainer):  # type: ignore[misc]
    """trl.KTOTrainer for examples with `prompt_ids`, `completion_ids` and `label`.

    Raises:
        ConfigError: the reference has to be computed before the training, but the loss needs mismatched pairs, which are made in training.
    """

    columns = ("ref_logps", "ref_KL_logps")
    desirable_weight: Any
    undesirable_weight: Any

    def __init__(self, model: Any, args: Any, *, train_dataset: Any, eval_dataset: Any = None, **kwargs: Any) -> None:
        order, args.train_sampling_strategy = (
            args.train_sampling_strategy,
            "sequential",
        )  # trl 1.16 insists on a fixed order
        try:
            super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        finally:
            args.train_sampling_strategy = order
        self._means = {"train": _KtoMeans(), "eval": _KtoMeans()}
        if self.calculate_KL and train_dataset is not eval_dataset:
            self._refuse_precomputed()

    def _refuse_precomputed(self) -> None:
        do = "Or set training.loss_type=apo_zero_unpaired, which takes no mismatched pairs"
        if self.args.precompute_ref_log_probs:
            found = f"true, and the mismatched pairs of the loss {self.loss_type} are made in training"
            raise ConfigError(Problem("training.precompute_ref_log_probs", found, do=f"Set it to false. {do}"))
        if self._adapter and not self._off_is_reference:
            found = f"an adapter that changes the model from the start, so that the loss {self.loss_type} lacks a reference"
            raise ConfigError(Problem("finetune", found, do=f"Begin a new adapter on the merged model. {do}"))

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The mean loss of the batch's examples; with `num_items_in_batch`, their sum divided by it."""
        weights = self.weights.of(inputs, training=self.model.training)
        inputs = self.with_reference(without_weights(inputs))
        good, examples = inputs["label"].bool(), len(inputs["label"])
        recorded = _RecordedModel(model)
        with efficient_head(), nullcontext() if weights is None else self._weighted_losses(weights, good):
            loss = super().compute_loss(recorded, inputs)
        if weights is None:
            weights = torch.ones(examples, device=good.device)
        else:
            self._weighted_metrics(recorded.log_probs, inputs, weights, good)
        tokens, total = inputs["completion_mask"][:, 1:].sum(1), float(weights.sum())
        sizes = {"entropy": float(tokens.sum())}
        for name, of_it in (("chosen", good), ("rejected", ~good)):
            sizes |= {f"{kind}/{name}": float(weights[of_it].sum()) for kind in ("rewards", "logps")}
            sizes[f"logits/{name}"] = float(tokens[of_it].sum())
        self.add_means(total, weights=sizes, **({} if self.model.training else {"loss": float(loss) * (examples / total)}))
        return loss if num_items_in_batch is None else loss * (examples / num_items_in_batch)

    @contextmanager
    def _weighted_losses(self, weights: torch.Tensor, good: torch.Tensor) -> Iterator[None]:
        """A context in which each example's loss is multiplied by its weight, through trl's (1.16) factors of good and bad completions."""
        own = self.desirable_weight, self.undesirable_weight
        self.desirable_weight, self.undesirable_weight = own[0] * weights[good], own[1] * weights[~good]
        try:
            yield
        finally:
            self.desirable_weight, self.undesirable_weight = own

    def _weighted_metrics(self, log_probs: torch.Tensor, inputs: dict[str, Any], weights: torch.Tensor, good: torch.Tensor) -> None:
        """Replace trl's means of rewards and log-probabilities by weighted ones of this process."""
        found = self._metrics["train" if self.model.training else "eval"]
        logps = log_probs.detach().sum(-1)
        for kind, values in (("rewards", self.beta * (logps - inputs["ref_logps"])), ("logps", logps)):
            for name, of_it in (("chosen", good), ("rejected", ~good)):
                if of_it.any():
                    found[f"{kind}/{name}"] = [float((weights * values)[of_it].sum() / weights[of_it].sum())]

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor | None:
        """The examples of an optimizer step over all processes, divided by the number of processes."""
        if not batch_samples:
            return None
        self.weights.see_step(batch_samples, self.accelerator)
        examples = torch.tensor(float(sum(len(batch["label"]) for batch in batch_samples if PLACEHOLDER not in batch)), device=device)
        return self.accelerator.reduce(examples, "sum") / self.accelerator.num_processes  # type: ignore[no-any-return]


class _RecordedModel:
    """Calls a model for trl and records the log-probabilities of the last call, [examples, tokens], 0 outside the completions."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.log_probs = torch.zeros(0)

    def __call__(self, **given: Any) -> Any:
        outputs = self._model(**given)
        self.log_probs = outputs.log_probs
        return outputs


class _KtoMeans(Means):
    """Means whose margin is the difference of the rewards' means, not a mean over the batches that have both kinds of completions."""

    def take(self) -> dict[str, float]:
        found = super().take()
        if {"rewards/chosen", "rewards/rejected"} <= found.keys():
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return found

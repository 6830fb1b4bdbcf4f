"""Kahneman-Tversky optimization (Ethayarajh et al. 2024): trl's trainer and losses, on answers that are each judged good or bad.

The loss `kto` compares with an estimate of the KL divergence over the mismatched pairs of a batch (`data.judged`), and so goes by the batch
by its nature. All else is a mean over the examples of an optimizer step, and an evaluation's over all examples; sums alone are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import KTOTrainer

from llmmod.errors import ConfigError, Problem
from llmmod.stages.comparing.reference import ReferenceTrainer
from llmmod.stages.lean.head import lean_head
from llmmod.stages.means import Means


class KtoTrainer(ReferenceTrainer, KTOTrainer):  # type: ignore[misc]
    """trl.KTOTrainer for examples that come with `prompt_ids`, `completion_ids` and `label`.

    Raises:
        ConfigError: the reference would have to be known before training, and the loss takes pairs that are made in training.
    """

    columns = ("ref_logps", "ref_KL_logps")

    def __init__(self, model: Any, args: Any, *, train_dataset: Any, eval_dataset: Any = None, **kwargs: Any) -> None:
        order, args.train_sampling_strategy = args.train_sampling_strategy, "sequential"  # trl 1.16 pairs by a fixed order; we don't
        try:
            super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        finally:
            args.train_sampling_strategy = order
        self._means = {"train": _Means(), "eval": _Means()}
        if self.calculate_KL and train_dataset is not eval_dataset:
            self._refuse_beforehand()

    def _refuse_beforehand(self) -> None:
        do = "Or set training.loss_type=apo_zero_unpaired, which takes no mismatched pairs"
        if self.args.precompute_ref_log_probs:
            found = f"true, and the mismatched pairs of the loss {self.loss_type} are made in training"
            raise ConfigError(Problem("training.precompute_ref_log_probs", found, do=f"Set it to false. {do}"))
        if self._adapter and not self._off_is_start:
            found = f"an adapter that is something from the start, whose reference the loss {self.loss_type} can't know"
            raise ConfigError(Problem("finetune", found, do=f"Begin a new adapter on the merged model. {do}"))

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The mean loss of the batch's examples, or their part of the mean over `num_items_in_batch` of them."""
        inputs = self.with_reference(inputs)
        with lean_head():
            loss = super().compute_loss(model, inputs)
        good, examples = inputs["label"].bool(), len(inputs["label"])
        tokens = inputs["completion_mask"][:, 1:].sum(1)
        weights = {"entropy": float(tokens.sum())}
        for name, of_it in (("chosen", good), ("rejected", ~good)):
            weights |= {f"{kind}/{name}": float(of_it.sum()) for kind in ("rewards", "logps")}
            weights[f"logits/{name}"] = float(tokens[of_it].sum())
        self.add_means(examples, weights=weights, **({} if self.model.training else {"loss": float(loss)}))
        return loss if num_items_in_batch is None else loss * (examples / num_items_in_batch)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor | None:
        """Examples of an optimizer step, of all processes, as a share of each."""
        if not batch_samples:
            return None
        examples = torch.tensor(float(sum(len(batch["label"]) for batch in batch_samples)), device=device)
        return self.accelerator.reduce(examples, "sum") / self.accelerator.num_processes  # type: ignore[no-any-return]


class _Means(Means):
    """Means whose margin is the difference of the rewards' means, not a mean over the batches that have answers of both kinds."""

    def take(self) -> dict[str, float]:
        found = super().take()
        if {"rewards/chosen", "rewards/rejected"} <= found.keys():
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return found

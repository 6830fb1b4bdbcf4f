"""`stage=dpo` and `stage=kto`: trl's trainers and losses for pairs of completions, and for completions labelled good or bad.

In Direct Preference Optimization (Rafailov et al. 2023), the prompt of a pair passes through the model once where its attention can branch
(`PrefixSharingCollator`), and only completions reach the head. trl's loss gets the log-probabilities in the layout of its own batches, so
its value is the same. The mean differs: it is over the pairs of an optimizer step, however they are divided into batches, where trl takes
the mean of the batches' means; for the loss `sft` it is over tokens. `aot` and `aot_unpaired` sort the pairs of a batch, so they depend on
the batches. Pairs of ranked answers are weighted so that each row counts once: trl's loss and metrics are then computed for the pairs of
each weight.

In Kahneman-Tversky Optimization (Ethayarajh et al. 2024), the loss `kto` estimates the KL divergence from the mismatched pairs of a batch
(`KTOCollator`), so it depends on the batches. Everything else is a mean over the examples of an optimizer step, or over all examples of an
evaluation. Ranked answers are weighted so that each row counts once in the loss, in rewards and in log-probabilities; metrics of tokens and
the estimate of the KL are unweighted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from trl import DPOTrainer, KTOTrainer

from llmmod.errors import ConfigError, Problem
from llmmod.models.attention.varlen import KEYS
from llmmod.trainers.distributed import PLACEHOLDER
from llmmod.trainers.efficient import efficient_head
from llmmod.trainers.means import Means, without_weights
from llmmod.trainers.preference.base import ReferenceTrainer, without_gathering
from llmmod.upstream import require_upstream

require_upstream(__name__)

_SFT = "sft"
_BY_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")  # outputs of the head


class DpoTrainer(ReferenceTrainer, DPOTrainer):  # type: ignore[misc]
    """trl.DPOTrainer for examples with `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    columns = ("ref_chosen_logps", "ref_rejected_logps")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        weighted = list(zip(self.loss_types, self.loss_weights, strict=True))
        self._sft_weight: float = sum(weight for name, weight in weighted if name == _SFT)
        self.loss_types: list[str] = [name for name, _ in weighted if name != _SFT]
        self.loss_weights: list[float] = [weight for name, weight in weighted if name != _SFT]
        self._tokens_of_step: torch.Tensor | float = 1.0

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The sum of the losses of the batch's pairs, divided by `num_items_in_batch`, or else by their number."""
        weights = self.weights.of(inputs, training=self.model.training)
        inputs = self.with_reference(without_weights(inputs))
        policy = _RecordedPairs(model, inputs)
        read = self.batch_for_trl(inputs)
        with efficient_head():
            loss = super().compute_loss(policy, read)
        pairs, chosen, _ = (float(count) for count in _counts(read))
        of_step = (pairs, chosen) if num_items_in_batch is None else (num_items_in_batch, self._tokens_of_step)
        if weights is None:
            loss, sft = self._sums(loss, policy.log_probs, read)
        else:
            self._metrics["train" if self.model.training else "eval"].clear()  # drop the metrics of unweighted pairs
            parts = [self._weighted_sums(weight, weights == weight, policy, read) for weight in torch.unique(weights)]
            loss, sft = (torch.stack(sums).sum() for sums in zip(*parts, strict=True))
        loss = loss / of_step[0]
        return loss + self._sft_weight * sft / of_step[1] if self._sft_weight else loss

    def _weighted_sums(
        self, weight: torch.Tensor, which: torch.Tensor, policy: _RecordedPairs, read: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`_sums` of the pairs of a batch that have this weight; `which`: bool [pairs]."""
        completions = which.repeat(2)
        part = {
            name: values[which if name.startswith("ref_") else completions] for name, values in read.items() if name != "attention_mask"
        }
        part["attention_mask"] = read["attention_mask"][:0]  # trl has counted the tokens of the whole batch
        with without_gathering(self.accelerator):
            loss = super().compute_loss(policy.select(completions), part)
        return self._sums(loss, policy.log_probs[completions], part, weight=float(weight))

    def _sums(
        self, loss: torch.Tensor, log_probs: torch.Tensor, read: dict[str, Any], *, weight: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sums of the loss over pairs, and of the loss `sft` over tokens; trl's metrics are added to the means.

        Args:
            loss: trl's mean over the pairs.
            log_probs: of the completions, [2 pairs, tokens].
            read: the batch in the form that trl reads.
            weight: of each pair.
        """
        pairs, chosen, rejected = (weight * float(count) for count in _counts(read))
        sft = -log_probs[: len(log_probs) // 2].sum() * weight
        tokens = {"entropy": chosen + rejected, "mean_token_accuracy": chosen, "logits/chosen": chosen, "logits/rejected": rejected}
        of_batch = {} if self.model.training else {"loss": float(loss), _SFT: float(sft) / chosen}
        self.add_means(pairs, weights=tokens | {_SFT: chosen}, **of_batch)
        return loss * pairs, sft

    def take_means(self) -> dict[str, float]:
        """The means over an evaluation; the part of the loss `sft` is a mean over tokens."""
        means = super().take_means()
        if "loss" in means:
            means["loss"] += self._sft_weight * means.pop(_SFT, 0.0)
        return means

    def model_for_trl(self, model: Any, inputs: dict[str, Any]) -> Any:
        """What trl calls as the model: it records the log-probabilities."""
        return _RecordedPairs(model, inputs)

    def batch_for_trl(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch in the form that trl's loss reads; of a shared row, the completions only."""
        if KEYS not in inputs:
            return inputs
        mask = inputs["completion_mask"]
        known = {name: inputs[name] for name in self.columns if name in inputs}
        return known | {"input_ids": mask, "attention_mask": torch.ones_like(inputs["input_ids"]), "completion_mask": mask}

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor | None:
        """The pairs of an optimizer step over all processes, as a share of each; also notes the tokens of chosen completions."""
        if not batch_samples:
            return None
        self.weights.see_step(batch_samples, self.accelerator)
        counts = torch.stack([torch.stack(_counts(batch)) * (PLACEHOLDER not in batch) for batch in batch_samples]).sum(0).to(device)
        pairs, self._tokens_of_step, _ = self.accelerator.reduce(counts, "sum") / self.accelerator.num_processes
        return pairs


class _RecordedPairs:
    """Calls a model for trl and records its log-probabilities, [2 pairs, tokens], 0 outside the completions.

    Args:
        model: the model.
        inputs: the batch. If it is a shared row, the model gets the row, and trl gets the outputs by completion.
    """

    def __init__(self, model: Any, inputs: dict[str, Any]) -> None:
        self._model, self._inputs = model, inputs
        self._outputs: Any = None
        self.log_probs = torch.zeros(0)

    def select(self, completions: torch.Tensor) -> Callable[..., Any]:
        """A callable that returns the recorded outputs of some completions, without calling the model; `completions`: bool [2 pairs]."""
        found = {name: getattr(self._outputs, name, None) for name in (*_BY_TOKEN, "aux_loss")}
        kept = {name: values if values is None or name == "aux_loss" else values[completions] for name, values in found.items()}
        return lambda **given: SimpleNamespace(**kept)

    def __call__(self, *, labels: torch.Tensor, **given: Any) -> Any:
        if KEYS in self._inputs:
            row = {name: value for name, value in self._inputs.items() if name != "completion_mask" and not name.startswith("ref_")}
            asked = {name: value for name, value in given.items() if name not in ("input_ids", "attention_mask")}
            outputs = self._model(**row, **asked)
            for name in _BY_TOKEN:
                if (values := getattr(outputs, name)) is not None:
                    outputs[name] = by_completion(values, self._inputs["shift_labels"], self._inputs["completion_mask"])
        else:
            outputs = self._model(labels=labels, **given)
        self._outputs, self.log_probs = outputs, outputs.log_probs
        return outputs


def by_completion(values: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The values of a row's labels by completion, [2 pairs, tokens of the longest completion]; 0 after the end of a completion.

    Args:
        values: of the row, [1, tokens].
        labels: `shift_labels`, [1, tokens].
        mask: `completion_mask`, [2 pairs, 1 + tokens of the longest completion].
    """
    by_pair = torch.stack(mask[:, 1:].bool().chunk(2), dim=1)  # [pairs, 2, tokens]
    # Labelled positions first, in order. Indexing with a mask would stall an accelerator until their number is known.
    labelled = torch.argsort((labels[0] < 0).long(), stable=True)
    found = values.new_zeros(by_pair.shape).masked_scatter(by_pair, values[0].index_select(0, labelled))
    return found.transpose(0, 1).flatten(0, 1)


def _counts(inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """The numbers of pairs, of tokens of chosen completions, and of tokens of rejected ones."""
    chosen, rejected = inputs["completion_mask"][:, 1:].float().chunk(2)
    return chosen.new_tensor(len(chosen)), chosen.sum(), rejected.sum()


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

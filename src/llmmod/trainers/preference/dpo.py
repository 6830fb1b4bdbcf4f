"""Direct preference optimization (Rafailov et al. 2023) and its kin: trl's trainer and losses, on pairs that share their prompt.

A pair's prompt goes through the model once where its attention can branch (`data.preference_collators.PrefixSharingCollator`), and only
answers reach the head.
trl's loss gets the log-probabilities laid out as those of its own batches, and so is what it is there. What differs: the mean is over the
pairs of an optimizer step, however they are divided into batches, where trl's is over the batches' means; of the loss `sft`, which is one
of trl's too, over the tokens. `aot` and `aot_unpaired` sort the pairs of a batch, and so go by the batch by their nature.
Pairs of ranked answers have weights, so that each row counts once: trl's loss and measures are then taken of the pairs of each weight.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from trl import DPOTrainer

from llmmod.models.packing.segments import KEYS
from llmmod.trainers.efficient import efficient_head
from llmmod.trainers.means import without_weights
from llmmod.trainers.preference.base import ReferenceTrainer, alone
from llmmod.upstream import require_upstream

require_upstream(__name__)

_SFT = "sft"
_BY_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")  # of what the head gives


class DpoTrainer(ReferenceTrainer, DPOTrainer):  # type: ignore[misc]
    """trl.DPOTrainer for examples that come with `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    columns = ("ref_chosen_logps", "ref_rejected_logps")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        weighted = list(zip(self.loss_types, self.loss_weights, strict=True))
        self._sft_weight: float = sum(weight for name, weight in weighted if name == _SFT)
        self.loss_types: list[str] = [name for name, _ in weighted if name != _SFT]
        self.loss_weights: list[float] = [weight for name, weight in weighted if name != _SFT]
        self._tokens_of_step: torch.Tensor | float = 1.0

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The mean loss of the batch's pairs, or their part of the mean over `num_items_in_batch` of them."""
        weights = self.weights.of(inputs, training=self.model.training)
        inputs = self.with_reference(without_weights(inputs))
        policy = _Policy(model, inputs)
        read = self.batch_for_trl(inputs)
        with efficient_head():
            loss = super().compute_loss(policy, read)
        pairs, chosen, _ = (float(count) for count in _counts(read))
        of_step = (pairs, chosen) if num_items_in_batch is None else (num_items_in_batch, self._tokens_of_step)
        if weights is None:
            loss, sft = self._sums(loss, policy.log_probs, read)
        else:
            self._metrics["train" if self.model.training else "eval"].clear()  # those of all pairs alike
            parts = [self._sums_of(weight, weights == weight, policy, read) for weight in torch.unique(weights)]
            loss, sft = (torch.stack(sums).sum() for sums in zip(*parts, strict=True))
        loss = loss / of_step[0]
        return loss + self._sft_weight * sft / of_step[1] if self._sft_weight else loss

    def _sums_of(
        self, weight: torch.Tensor, which: torch.Tensor, policy: _Policy, read: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `_sums`, of the pairs of a batch that have this weight; `which` says of each pair whether it has."""
        answers = which.repeat(2)
        part = {name: values[which if name.startswith("ref_") else answers] for name, values in read.items() if name != "attention_mask"}
        part["attention_mask"] = read["attention_mask"][:0]  # its tokens were counted with the whole batch
        with alone(self.accelerator):
            loss = super().compute_loss(policy.of(answers), part)
        return self._sums(loss, policy.log_probs[answers], part, weight=float(weight))

    def _sums(
        self, loss: torch.Tensor, log_probs: torch.Tensor, read: dict[str, Any], *, weight: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums of the loss over pairs, and of the loss `sft` over their tokens, times their weight; trl's measures are noted.

        Args:
            loss: trl's mean over the pairs.
            log_probs: of their answers, [2 pairs, tokens].
            read: the pairs as trl reads them.
            weight: of each.
        """
        pairs, chosen, rejected = (weight * float(count) for count in _counts(read))
        sft = -log_probs[: len(log_probs) // 2].sum() * weight
        tokens = {"entropy": chosen + rejected, "mean_token_accuracy": chosen, "logits/chosen": chosen, "logits/rejected": rejected}
        of_batch = {} if self.model.training else {"loss": float(loss), _SFT: float(sft) / chosen}
        self.add_means(pairs, weights=tokens | {_SFT: chosen}, **of_batch)
        return loss * pairs, sft

    def take_means(self) -> dict[str, float]:
        """The means over an evaluation; of the loss `sft`, which is a part of the loss, over its tokens."""
        means = super().take_means()
        if "loss" in means:
            means["loss"] += self._sft_weight * means.pop(_SFT, 0.0)
        return means

    def model_for_trl(self, model: Any, inputs: dict[str, Any]) -> Any:
        """What stands for the model where trl calls it with a batch that it reads."""
        return _Policy(model, inputs)

    def batch_for_trl(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch under the names that trl's loss knows; of a shared row, answers alone."""
        if KEYS not in inputs:
            return inputs
        mask = inputs["completion_mask"]
        known = {name: inputs[name] for name in self.columns if name in inputs}
        return known | {"input_ids": mask, "attention_mask": torch.ones_like(inputs["input_ids"]), "completion_mask": mask}

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor | None:
        """Pairs of an optimizer step, of all processes, as a share of each; and how many tokens their chosen answers have."""
        if not batch_samples:
            return None
        self.weights.see_step(batch_samples, self.accelerator)
        counts = torch.stack([torch.stack(_counts(batch)) for batch in batch_samples]).sum(0).to(device)
        pairs, self._tokens_of_step, _ = self.accelerator.reduce(counts, "sum") / self.accelerator.num_processes
        return pairs


class _Policy:
    """Stands for a model where trl calls it; it keeps the log-probabilities, [2 pairs, tokens], 0 where there is no answer.

    Args:
        model: is called.
        inputs: the batch; of a shared row, the model gets that instead of what trl read, and trl gets its outputs by answer.
    """

    def __init__(self, model: Any, inputs: dict[str, Any]) -> None:
        self._model, self._inputs = model, inputs
        self._outputs: Any = None
        self.log_probs = torch.zeros(0)

    def of(self, answers: torch.Tensor) -> Callable[..., Any]:
        """Stands for a model that is called with some of the answers: it gives what the whole batch gave. `answers`: bool [2 pairs]."""
        found = {name: getattr(self._outputs, name, None) for name in (*_BY_TOKEN, "aux_loss")}
        kept = {name: values if values is None or name == "aux_loss" else values[answers] for name, values in found.items()}
        return lambda **given: SimpleNamespace(**kept)

    def __call__(self, *, labels: torch.Tensor, **given: Any) -> Any:
        if KEYS in self._inputs:
            row = {name: value for name, value in self._inputs.items() if name != "completion_mask" and not name.startswith("ref_")}
            asked = {name: value for name, value in given.items() if name not in ("input_ids", "attention_mask")}
            outputs = self._model(**row, **asked)
            for name in _BY_TOKEN:
                if (values := getattr(outputs, name)) is not None:
                    outputs[name] = by_answer(values, self._inputs["shift_labels"], self._inputs["completion_mask"])
        else:
            outputs = self._model(labels=labels, **given)
        self._outputs, self.log_probs = outputs, outputs.log_probs
        return outputs


def by_answer(values: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What a row has for each of its labels, answer by answer, [2 pairs, tokens of the longest answer]; 0 where an answer is over.

    Args:
        values: of the row, [1, tokens].
        labels: `shift_labels`, [1, tokens].
        mask: `completion_mask`, [2 pairs, 1 + tokens of the longest answer].
    """
    by_pair = torch.stack(mask[:, 1:].bool().chunk(2), dim=1)  # [pairs, 2, tokens]
    found = values.new_zeros(by_pair.shape).masked_scatter(by_pair, values[labels >= 0])
    return found.transpose(0, 1).flatten(0, 1)


def _counts(inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """Pairs of a batch, tokens of their chosen answers, and of the rejected ones."""
    chosen, rejected = inputs["completion_mask"][:, 1:].float().chunk(2)
    return chosen.new_tensor(len(chosen)), chosen.sum(), rejected.sum()

"""`stage=sft` and `stage=pt`: trl's SFTTrainer, with the head on labelled positions only and an exact evaluation.

trl 1.16's evaluation loss is the mean of the batches' means, so a token of a short answer counts more than one of a long answer. Here the
losses of all tokens are added up and divided by their number, and so is the accuracy. Only three sums are kept, so memory does not grow
with the number of examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTTrainer

from llmmod.data.dataset.packing import PackedDataset
from llmmod.models.attention.varlen import BOUNDARIES
from llmmod.models.packing import packed_attention
from llmmod.trainers.base import StageTrainer
from llmmod.trainers.distributed import PLACEHOLDER
from llmmod.trainers.efficient import efficient_head
from llmmod.upstream import require_upstream

require_upstream(__name__)

_MOST_NATS = 700.0  # exp of more overflows; a loss of 700 nats a token is broken anyway


class SftTrainer(StageTrainer, SFTTrainer):  # type: ignore[misc]
    """trl.SFTTrainer for examples with `input_ids` and `labels`, packed or not."""

    def __init__(self, *args: Any, train_dataset: Any = None, **kwargs: Any) -> None:
        # trl 1.16 accepts only the classes of the library datasets.
        whole = train_dataset.examples if isinstance(train_dataset, PackedDataset) else train_dataset
        config = (args[0] if args else kwargs["model"]).config.get_text_config()
        router_logits = getattr(config, "output_router_logits", None)
        super().__init__(*args, train_dataset=whole, **kwargs)
        self.train_dataset = train_dataset
        if router_logits is not None:
            # trl 1.16 sets it to True, though it also requests them in each batch; with True, generation with a cache fails.
            config.output_router_logits = router_logits

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The sum of the losses of labelled positions, divided by `num_items_in_batch`, or else by their number."""
        with efficient_head(uniform_gradient=self.args.loss_type == "nll"):
            return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """The number of labelled tokens of an optimizer step; a placeholder counts 0."""
        unlabelled = [{**b, "labels": torch.full_like(b["labels"], -100)} if PLACEHOLDER in b else b for b in batch_samples]
        return super()._get_num_items_in_batch(unlabelled, device)

    def prediction_step(self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None) -> Any:
        """Add a batch to the sums of `evaluation_loop`; returns logits only if a metric of the user needs them."""
        if not prediction_loss_only:
            with packed_attention(self.model, inputs):
                return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager(), efficient_head(), packed_attention(self.model, inputs):
            outputs = model(**inputs, fused_lm_head=True)
        sums = sums_by_example([-outputs.log_probs, outputs.label_mask, outputs.is_top1], inputs.get(BOUNDARIES))
        # Gathered by example, [batch, 3], which drops the duplicates that fill the last batch of several processes.
        self._sums += self.accelerator.gather_for_metrics(sums).cpu().double().sum(0)
        return None, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The library's evaluation, with `<prefix>_loss`, `_perplexity` and `_token_accuracy` over all tokens."""
        self._sums = torch.zeros(3, dtype=torch.float64)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, tokens, correct = self._sums.tolist()
        if tokens:
            exact = {"loss": loss / tokens, "perplexity": math.exp(min(loss / tokens, _MOST_NATS)), "token_accuracy": correct / tokens}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in exact.items()})
        return output


def sums_by_example(values: Sequence[torch.Tensor], boundaries: torch.Tensor | None) -> torch.Tensor:
    """The sums of each example's values, float32 [examples, kinds of values].

    Args:
        values: each [rows, tokens - 1], for the second token of a row and those after it; 0 where a token has no label.
        boundaries: the start of each example in a single row, and the end of the last one; None: each row is an example.
    """
    if boundaries is None:
        return torch.stack([value.float().sum(1) for value in values], dim=1)
    numbers, tokens = torch.arange(len(boundaries) - 1, device=boundaries.device), values[0].shape[1] + 1
    examples = torch.repeat_interleave(numbers, boundaries.diff().long(), output_size=tokens)
    zeros = values[0].new_zeros(len(boundaries) - 1, len(values), dtype=torch.float32)
    return zeros.index_add(0, examples[1:], torch.cat([value.float() for value in values]).T)

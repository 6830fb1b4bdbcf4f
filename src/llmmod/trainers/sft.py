"""Supervised fine-tuning: trl's trainer, with the head on labelled positions alone and evaluation exact to the token.

trl 1.16's evaluation loss is the mean of the batches' means, so that a token of a short answer counts more. Here the losses of all tokens
are added up and divided by their number, and accuracy likewise. Three sums are all that is kept: memory doesn't grow with the examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTTrainer

from llmmod.data.dataset.packing import PackedDataset
from llmmod.models.packing.segments import BOUNDARIES, packed_attention
from llmmod.trainers.base import StageTrainer
from llmmod.trainers.efficient import efficient_head
from llmmod.upstream import require_upstream

require_upstream(__name__)

# exp of more than this is no float; a loss of 700 nats a token is broken anyway.
_MOST_NATS = 700.0


class SftTrainer(StageTrainer, SFTTrainer):  # type: ignore[misc]
    """trl.SFTTrainer for examples that come with `input_ids` and `labels`, packed ones too."""

    def __init__(self, *args: Any, train_dataset: Any = None, **kwargs: Any) -> None:
        # trl 1.16 refuses any dataset that isn't of the library datasets.
        whole = train_dataset.examples if isinstance(train_dataset, PackedDataset) else train_dataset
        config = (args[0] if args else kwargs["model"]).config.get_text_config()
        router_logits = getattr(config, "output_router_logits", None)
        super().__init__(*args, train_dataset=whole, **kwargs)
        self.train_dataset = train_dataset
        if router_logits is not None:
            # trl 1.16 asks for them in each batch that is trained as well; of a config that asks for them, generation with a cache fails.
            config.output_router_logits = router_logits

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The mean loss of the labelled positions, over `num_items_in_batch` of them where it is given."""
        with efficient_head():
            return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)

    def prediction_step(self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None) -> Any:
        """Nothing, a batch's sums being kept for `evaluation_loop`; logits only where a metric of the user's own asks for them."""
        if not prediction_loss_only:
            with packed_attention(self.model, inputs):
                return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager(), efficient_head(), packed_attention(self.model, inputs):
            outputs = model(**inputs, fused_lm_head=True)
        sums = by_example([-outputs.log_probs, outputs.label_mask, outputs.is_top1], inputs.get(BOUNDARIES))
        # Gathered by example, [batch, 3], so that what was added to fill the last batch of several processes is left out again.
        self._sums += self.accelerator.gather_for_metrics(sums).double().sum(0).cpu()
        return None, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the library's, with `<prefix>_loss`, `_perplexity` and `_token_accuracy` over all tokens."""
        self._sums = torch.zeros(3, dtype=torch.float64)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, tokens, correct = self._sums.tolist()
        if tokens:
            exact = {"loss": loss / tokens, "perplexity": math.exp(min(loss / tokens, _MOST_NATS)), "token_accuracy": correct / tokens}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in exact.items()})
        return output


def by_example(values: Sequence[torch.Tensor], boundaries: torch.Tensor | None) -> torch.Tensor:
    """The sums of each example's values, float32 [examples, kinds of values].

    Args:
        values: each [rows, tokens - 1], of the tokens from the second of a row on; 0 where a token has no label.
        boundaries: where the examples of the one row there is begin, and where the last one ends; None: each row is an example.
    """
    if boundaries is None:
        return torch.stack([value.float().sum(1) for value in values], dim=1)
    numbers, tokens = torch.arange(len(boundaries) - 1, device=boundaries.device), values[0].shape[1] + 1
    examples = torch.repeat_interleave(numbers, boundaries.diff().long(), output_size=tokens)
    zeros = values[0].new_zeros(len(boundaries) - 1, len(values), dtype=torch.float32)
    return zeros.index_add(0, examples[1:], torch.cat([value.float() for value in values]).T)

"""What training on a model's own answers (stage=ppo, stage=grpo) can't go with: answers sampled otherwise, and prompts that come once."""

from __future__ import annotations

from collections.abc import Iterator

from llmmod.errors import Problem
from llmmod.schema.validate.context import Context


def check_rollouts(context: Context) -> Iterator[Problem]:
    """A problem for each such training with LongLoRA's attention, a streamed dataset, or an end that trl doesn't know."""
    for step in context.steps:
        training = context.get(context.part(step, "training")) or {}
        if not context.trains(step) or training.get("data_kind") != "prompt":
            continue
        model, dataset = context.part(step, "model"), context.part(step, "dataset")
        if context.get(f"{model}.shift_attn"):
            found = "true, and answers are sampled without it, so that their probabilities would differ"
            yield Problem(f"{model}.shift_attn", found, do="Set it to false")
        if context.get(f"{dataset}.streaming"):
            yield Problem(f"{dataset}.streaming", f"true, and {training.get('stage')} comes back to its prompts", do="Set it to false")
        strings, conf = (training.get("generation_kwargs") or {}).get("stop_strings"), context.part(step, "training")
        if strings and training.get("mask_truncated_completions"):
            found = "true, and trl takes an answer that a string ended (training.generation_kwargs.stop_strings) for one that was cut off"
            yield Problem(f"{conf}.mask_truncated_completions", found, do="Set it to false")

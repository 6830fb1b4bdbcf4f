"""Packed rows that an implementation of attention, a trainer or a collator can't keep apart: told from names alone.

What only a loaded model or class can say (whether the model's examples see each other, a trainer of the user's own),
`llmmod.stages.batches` says later.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmmod.errors import Problem
from llmmod.instantiate import import_own
from llmmod.schema.validate.context import Context

# Packages whose trainers know nothing of rows that several examples share, but for those that theirs have packed.
_LIBRARIES = ("trl", "transformers")
_PAD_RIGHT = "llmmod.data.collate.PadRight"


def check_packing(context: Context) -> Iterator[Problem]:
    """A problem for each packed dataset that would be trained on without its examples being kept apart."""
    for step in context.steps:
        place = context.part(step, "dataset")
        if not context.trains(step) or not context.get(f"{place}.packing"):
            continue
        training = context.part(step, "training")
        if (trainer := _trainer(context, training)) is not None:
            yield trainer
        elif reason := _reason(context, step, training):
            yield Problem(f"{place}.packing", f"true, and {reason}", do="Set it to false")


def _trainer(context: Context, training: str) -> Problem | None:
    target = str(context.get(f"{training}.trainer._target_"))
    if target.split(".")[0] not in _LIBRARIES:
        return None
    found = f"{target} with dataset.packing=true, and it doesn't keep the examples of a row apart"
    do = "Leave it to the stage, derive yours from llmmod.stages.sft.SftTrainer, or set dataset.packing=false"
    return Problem(f"{training}.trainer._target_", found, do=do)


def _reason(context: Context, step: str, training: str) -> str | None:
    if context.get(f"{training}.collator._target_") == _PAD_RIGHT:
        return f"{training}.collator._target_={_PAD_RIGHT} takes a row for one example"
    if isinstance(context.get(f"{training}.pad_to_multiple_of"), int):
        return f"{training}.pad_to_multiple_of asks for padding"
    attention = context.get(f"{context.part(step, 'model')}.attn_implementation")
    reason: str | None = import_own("llmmod.models.apart.why_not_attention")(attention) if isinstance(attention, str) else None
    return reason

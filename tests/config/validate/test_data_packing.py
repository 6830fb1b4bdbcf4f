"""Packing is refused before heavy imports where the examples of a row would affect each other; the full messages."""

from __future__ import annotations

import pytest

PACKED = "dataset.packing=true"
WAY_OUT = "Use the stage's trainer, derive yours from llmmod.trainers.sft.SftTrainer, or set dataset.packing=false."


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["model.attn_implementation=flex_attention"],
            "dataset.packing: true, and attention 'flex_attention' can't keep the examples of a row apart. Set it to false.",
        ),
        (
            ["training.pad_to_multiple_of=8"],
            "dataset.packing: true, and training.pad_to_multiple_of asks for padding. Set it to false.",
        ),
        (
            ["training.collator._target_=llmmod.data.collators.PaddingCollator"],
            "dataset.packing: true, and training.collator._target_=llmmod.data.collators.PaddingCollator treats a row as one example. "
            "Set it to false.",
        ),
        (
            ["training.trainer._target_=trl.SFTTrainer"],
            "training.trainer._target_: trl.SFTTrainer with dataset.packing=true, but it doesn't keep the examples of a row apart. "
            f"{WAY_OUT}",
        ),
        (
            ["stage=pt", "training.trainer._target_=transformers.Trainer"],
            "training.trainer._target_: transformers.Trainer with dataset.packing=true, but it doesn't keep the examples of a row apart. "
            f"{WAY_OUT}",
        ),
    ],
    ids=["attention", "multiple", "collator", "trainer", "trainer-of-documents"],
)
def test_refused(told, overrides, line):
    assert told(PACKED, *overrides) == [line]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["smoke=true"],
        ["model=baichuan"],
        ["model=bloom"],
        ["model=falcon", "smoke=true"],
        ["model=baichuan_13b"],
        ["model.attn_implementation=eager"],
        ["model.attn_implementation=sdpa"],
        ["smoke=true", "model.architecture.model_type=unheard_of"],
        ["model=bloom", "pipeline=[predict]"],
    ],
    ids=["llama", "rehearsal", "becomes-llama", "own-attention", "rehearsed", "alibi", "eager", "sdpa", "unknown", "no-training"],
)
def test_right(told, overrides):
    assert told(PACKED, *overrides) == []

"""Each stage and way to fine-tune on a GPU against `plain_loop` in float32 on the CPU: losses, gradients, weights, evaluation, export."""

from __future__ import annotations

import plain_loop as plain
import pytest
from comparison import STAGES, Tolerance, apart, both, rows, work
from on_gpu import needs_card

__all__ = ["both", "rows", "work"]

# Sums have another order, and exp and log round differently: ten times what tests/differential allows two CPUs. If a step leaves something
# out or does it twice, the difference is at least a tenth.
FLOAT32 = Tolerance(loss=3e-4, gradient=1e-3, moved=3e-2, evaluation=1e-3, logits=2e-3)
# Products have 8 bits of mantissa, 11 in float16: relative errors of 4e-3 and 5e-4 of each number between two layers. AdamW
# divides a gradient by its own size, so the errors of the smallest ones count as much as the others.
BFLOAT16 = Tolerance(loss=5e-2, gradient=2e-1, moved=5e-1, evaluation=1e-1, logits=4e-1)
FLOAT16 = Tolerance(loss=1e-2, gradient=5e-2, moved=2e-1, evaluation=3e-2, logits=1e-1)

PRECISIONS = {
    "float32": ("float32", FLOAT32, ["training.bf16=false"]),
    "bf16 autocast": ("float32", BFLOAT16, ["training.bf16=true"]),
    "fp16 with a scaler": ("float32", FLOAT16, ["training.fp16=true"]),
    "bfloat16 checkpoint": ("bfloat16", BFLOAT16, []),
}
CELLS = [("float32", stage, way) for stage in STAGES for way in ("full", "freeze", "lora")]
CELLS += [("bf16 autocast", stage, way) for stage in STAGES for way in ("full", "lora", "qlora")]
CELLS += [("fp16 with a scaler", stage, way) for stage in ("sft", "rm", "dpo", "ppo") for way in ("full", "lora")]
CELLS += [("bfloat16 checkpoint", stage, way) for stage in ("sft", "dpo", "grpo") for way in ("full", "freeze", "lora")]


@pytest.mark.parametrize(
    ("precision", "stage", "way"),
    [pytest.param(*cell, id="-".join(cell), marks=[needs_card] if "fp16" in cell[0] else []) for cell in CELLS],
)
def test_computes_what_the_plain_loop_does_on_the_cpu(both, precision, stage, way):
    weights, tolerance, chosen = PRECISIONS[precision]
    found, expected = both(stage, way, weights, *chosen)
    assert apart(found, expected(), tolerance) == {}


@pytest.mark.parametrize("change", [("WEIGHT_DECAY", 0.0), ("MOST_NORM", 0.6), ("KL_COEF", 0.0), ("VALUE_COEF", 0.0)], ids=lambda c: c[0])
def test_whatever_is_computed_otherwise_shows(both, monkeypatch, change):
    """Shows that float32's tolerances find such differences."""
    found, expected = both("ppo", "lora", "float32", "training.bf16=false")
    monkeypatch.setattr(plain, *change)
    assert apart(found, expected(), FLOAT32) != {}

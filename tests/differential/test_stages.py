"""Each stage, way to fine-tune and type of weights against `plain_loop`: losses, gradients, weights, evaluation, exported logits."""

from __future__ import annotations

import plain_loop as plain
import pytest
from comparison import STAGES, TOLERANCES, WAYS, apart, both, rows, work

__all__ = ["both", "rows", "work"]


@pytest.mark.parametrize("weights", TOLERANCES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", STAGES)
def test_computes_what_the_plain_loop_does(both, stage, way, weights, monkeypatch):
    if weights == "bfloat16":  # no ratio is near it; near it, rounding to 8 bits would decide which tokens are clipped
        monkeypatch.setattr(plain, "CLIP", 0.9)
    found, expected = both(stage, way, weights)
    assert apart(found, expected(), TOLERANCES[weights]) == {}


# Each of these constants changes the computation, and the comparison must detect it.
OTHERS = {
    "WEIGHT_DECAY": 0.0, "MOST_NORM": 0.51, "CLIP": 0.01, "KL_COEF": 0.05, "GAMMA": 1.0, "LAMBDA": 0.9, "VALUE_COEF": 0.0,
    "ENTROPY_COEF": 0.0,
}  # fmt: skip


def test_a_changed_constant_is_detected(both, monkeypatch):
    found, expected = both("ppo", "lora", "float32")
    for name, value in OTHERS.items():
        with monkeypatch.context() as patch:
            patch.setattr(plain, name, value)
            assert apart(found, expected(), TOLERANCES["float32"]) != {}, name


def test_training_in_bfloat16_is_detected(both):
    found, expected = both("sft", "full", "bfloat16", "finetune.trainable_dtype=checkpoint")
    assert apart(found, expected(), TOLERANCES["bfloat16"])["moved"] > 0.6

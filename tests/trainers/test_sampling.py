"""An epoch's order doesn't depend on earlier random numbers, and the next epoch has another order."""

from __future__ import annotations

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from llmmod.trainers.base import EpochSeededSampler


def order(epoch, seed=3):
    sampler = EpochSeededSampler(LengthGroupedSampler(2, lengths=[4] * 20), seed)
    sampler.set_epoch(epoch)
    assert len(sampler) == 20
    return list(sampler)


def test_the_order_is_the_epoch_s():
    first = order(1)
    torch.rand(5)
    assert order(1) == first
    assert sorted(first) == list(range(20))
    assert order(2) != first
    assert order(1, seed=4) != first

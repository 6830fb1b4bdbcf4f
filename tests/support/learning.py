"""What tests of learning have in common: a training by seed, and what is measured of it."""

from __future__ import annotations

import torch


def learnt(trainer_of, splits, seeds, measure=lambda trainer: trainer.evaluate()):
    """What is measured before a training and after it, by seed.

    Args:
        trainer_of: makes a trainer, given a seed, examples to train on and examples held out.
        splits: makes the two, given a seed; each seed has weights and examples of its own.
        measure: of a trainer.
    """
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        trainer = trainer_of(seed, *splits(seed))
        before = measure(trainer)
        trainer.train()
        found.append((before, measure(trainer)))
    return found

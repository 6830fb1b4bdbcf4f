"""A toy task for stages that learn from pairs: twelve of 24 tokens are good, and the answer with more good tokens is better.

A seed draws the good tokens, prompts and answers; held-out pairs are drawn separately. A model that drifts, or whose pairs don't carry
information, prefers tokens regardless of which are good. For 80,000 such preferences (a normal number for each token,
summed over an answer), the mean accuracy on 1,024 pairs is a half, the standard deviation is 9 %, and 1.4 % are right on 70 %.
"""

from __future__ import annotations

import random

from datasets import Dataset

TOKENS = range(20, 44)
# `training.*` with which each of these stages learns them well.
SETTINGS = {
    "learning_rate": 1.4e-2,
    "lr_scheduler_type": "constant",
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
    "logging_steps": 64.0,
    "eval_strategy": "no",
    "eval_on_start": False,
}
# Changes for stages whose seeds differ more: with a constant rate, the last steps' examples change the result.
SLOWER = {"learning_rate": 2e-2, "lr_scheduler_type": "linear", "per_device_train_batch_size": 64}


def splits(seed, train=1024, held_out=1024):
    """Training pairs and held-out pairs with the same good tokens."""
    draw = random.Random(seed)
    good = set(draw.sample(TOKENS, 12))
    return [Dataset.from_list([_pair(draw, good) for _ in range(count)]) for count in (train, held_out)]


def _pair(draw, good):
    answers = [draw.choices(TOKENS, k=4) for _ in range(2)]
    fewer, more = (sum(token in good for token in answer) for answer in answers)
    if fewer == more:
        return _pair(draw, good)
    rejected, chosen = answers if fewer < more else reversed(answers)
    prompt = [draw.randrange(60, 90) for _ in range(draw.randint(1, 5))]
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}

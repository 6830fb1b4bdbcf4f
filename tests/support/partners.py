"""A toy task for stages that learn from texts: each of twelve tokens has a partner among the twelve that always follows it.

A seed draws each partner independently. Held-out texts, which are drawn separately, have each token once. A model that doesn't know the
partners, whether it drifts or copies earlier tokens, gets each right once in twelve times, independently: at least half of them once in
5,000 times (0.02 % of the binomial distribution).
"""

from __future__ import annotations

import random

from datasets import Dataset

TOKENS = range(20, 32)
END = 0
# `training.*` with which a tiny model learns the partners.
SETTINGS = {
    "learning_rate": 1e-2,
    "lr_scheduler_type": "linear",
    "num_train_epochs": 1.0,
    "per_device_eval_batch_size": 256,
    "logging_steps": 64.0,
    "eval_strategy": "no",
    "eval_on_start": False,
}


def questions(seed):
    """For sft: 2,040 training and twelve held-out examples, each with a token after random ones as question and its partner as answer."""
    return _splits(seed, _questions)


def documents(seed):
    """For pt: 340 training and two held-out examples of six tokens and their partners. In held-out ones only the partners have labels."""
    return _splits(seed, _documents)


def _splits(seed, texts):
    draw = random.Random(seed)
    partners = {token: draw.choice(TOKENS) for token in TOKENS}
    train = [text for _ in range(170) for text in texts(draw, partners)]
    held_out = [text | {"labels": text["foretold"]} for text in texts(draw, partners)]
    return [Dataset.from_list(split).remove_columns("foretold") for split in (train, held_out)]


def _questions(draw, partners):
    for token in draw.sample(TOKENS, len(TOKENS)):
        asked = [*draw.choices(range(60, 90), k=draw.randint(3, 6)), token]
        unread, answer = [-100] * len(asked), [partners[token], END]
        yield {"input_ids": asked + answer, "labels": unread + answer, "foretold": [*unread, partners[token], -100]}


def _documents(draw, partners):
    order = draw.sample(TOKENS, len(TOKENS))
    for half in (order[:6], order[6:]):
        ids = [*(id for token in half for id in (token, partners[token])), END]
        yield {"input_ids": ids, "labels": ids, "foretold": [*(id for token in half for id in (-100, partners[token])), -100]}

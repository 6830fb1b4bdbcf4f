"""KTO learns with every way to fine-tune: with each of two seeds the better answer becomes the likelier one in at least 70 % of held-out
pairs. By chance it is half, and 70 % once in 70 times for one seed (good_tokens.py), once in 5,000 for both.

The training data are dpo's pairs as single answers, each labelled as the better or worse one of its pair and all shuffled.
"""

from __future__ import annotations

import good_tokens
import learning
import pytest
import torch
import ways
from preferences import judged

SEEDS = (1, 2)
# A row is one answer, so a batch has twice as many rows as dpo's.
SETTINGS = good_tokens.SETTINGS | good_tokens.SLOWER | {"beta": 0.5, "learning_rate": 4e-2, "per_device_train_batch_size": 128}


def splits(seed, way):
    """Judged answers for training and held out; a pair's answers are adjacent, the better one first. With all weights, half as many do."""
    return [judged(pairs) for pairs in good_tokens.splits(seed, train=768 if way == "full" else 1536)]


def better_is_likelier(trainer):
    """The share of held-out pairs whose better answer has the higher probability."""
    batch = trainer.data_collator(trainer.eval_dataset.to_list())
    ids, model = batch["input_ids"], trainer.model.eval()
    with torch.no_grad():
        found = torch.log_softmax(model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1], -1)
    of_tokens = found.gather(2, ids[:, 1:, None])[..., 0]
    better, worse = (of_tokens * batch["completion_mask"][:, 1:]).sum(1).view(-1, 2).T
    return (better > worse).float().mean().item()


@pytest.mark.parametrize("way", ways.WAYS)
def test_better_answers_that_it_never_saw_are_likelier(kto_trainer, tiny_llama, way, learning_seed, record_property):
    torch.manual_seed(learning_seed)
    model = ways.prepared(ways.untrained(tiny_llama.config, way), way, target_modules=ways.EMBEDDINGS)
    train, held_out = splits(learning_seed, way)
    trainer = kto_trainer(model, train=train, evaluation=held_out, seed=learning_seed, **SETTINGS)
    learning.assert_learns(trainer, record_property, rule=0.7, measure=better_is_likelier)

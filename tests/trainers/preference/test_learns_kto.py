"""KTO learns, whatever is trained: with each of two seeds the better answer comes to be the likelier one of at least 70 % of the held-out
pairs, where chance gets half, and 70 % once in 70 times a seed (good_tokens.py), once in 5,000 with both.

What is trained on is the pairs that dpo has, apart: each answer with whether it is the better one of its pair, all shuffled. The learning
rate falls to 0: with a constant one, what the last steps saw moved one seed in twelve by a tenth.
"""

from __future__ import annotations

import good_tokens
import learning
import pytest
import torch
import ways
from preferences import judged
from transformers import LlamaForCausalLM

SEEDS = (1, 2)
SETTINGS = good_tokens.SETTINGS | {"learning_rate": 1.2e-2, "lr_scheduler_type": "linear", "beta": 0.5}


def splits(seed):
    """Judged answers to train on and held out; the answers of a pair come one after the other, the better one first."""
    return [judged(pairs) for pairs in good_tokens.splits(seed, train=2048)]


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
    model = ways.prepared(LlamaForCausalLM(tiny_llama.config), way, target_modules=ways.EMBEDDINGS)
    train, held_out = splits(learning_seed)
    trainer = kto_trainer(model, train=train, evaluation=held_out, seed=learning_seed, **SETTINGS)
    learning.assert_learns(trainer, record_property, rule=0.7, measure=better_is_likelier)

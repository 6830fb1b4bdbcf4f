"""The gradient of one optimizer step for different divisions of its examples into batches, for the geometry tests of all stages."""

from __future__ import annotations

import torch
from datasets import Dataset
from transformers import TrainerCallback

# (examples per micro-batch, micro-batches per step); of seven examples, the last micro-batch of (2, 4) has only one.
DIVISIONS = ((1, 8), (2, 4), (8, 1))
ONE_STEP = {
    "max_steps": 1,
    "learning_rate": 0.0,
    "max_grad_norm": 0.0,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "train_sampling_strategy": "sequential",
}


class Gradients(TrainerCallback):
    """Stores the gradient that the optimizer gets, in float64."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen = {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


def step_gradient(make, **changes):
    """name -> gradient of the single step of a trainer.

    Args:
        make: a function that creates a trainer from changes of `training.*` and a list of callbacks.
        changes: changes of `ONE_STEP`.
    """
    gradients = Gradients()
    make(callbacks=[gradients], **{**ONE_STEP, **changes}).train()
    return gradients.seen


def divided(batch, steps):
    """`training.*` for a division."""
    return {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}


def apart(found, expected):
    """The difference of two gradients relative to the norm of the expected one, over all parameters."""
    assert found.keys() == expected.keys()
    difference = torch.cat([(found[name] - expected[name]).flatten() for name in expected])
    return (difference.norm() / torch.cat([gradient.flatten() for gradient in expected.values()]).norm()).item()


def pairs_of_all_lengths():
    """Seven pairs with long and short answers and prompts."""
    lengths = [(9, 4, 7), (3, 1, 5), (20, 12, 2), (2, 3, 3), (6, 6, 1), (4, 14, 16), (11, 1, 1)]
    token = iter(range(5, 400))
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{name: [next(token) for _ in range(n)] for name, n in zip(names, found, strict=True)} for found in lengths]


def pairs_gradient(trainer_of, examples, prepare=lambda model: None):
    """A function that returns the gradient of one step, for changes of `training.*`.

    Args:
        trainer_of: a function that creates a trainer.
        examples: the pairs to train on by default.
        prepare: a function that changes the model before the training.
    """

    def of(train=None, collator=None, **changes):
        def make(**given):
            trainer = trainer_of(train=Dataset.from_list(train or examples), **given)
            if collator is not None:
                trainer.data_collator = collator(trainer.processing_class)
            prepare(trainer.model)
            return trainer

        return step_gradient(make, **changes)

    return of

"""What llmmod computes, looked at while it trains: a callback and a reward function that a configuration names, as users have them."""

from __future__ import annotations

import torch
from transformers import TrainerCallback

TRAININGS: list[Observer] = []
ANSWERS: list[list[tuple[str, list[int], float]]] = []  # (question, ids of the answer, reward) of each call of the reward function


class Observer(TrainerCallback):
    """Keeps what a training begins with, and each step's loss and gradient; the newest is `TRAININGS[-1]`."""

    def __init__(self):
        self.start, self.end, self.gradients, self.losses = {}, {}, [], []
        TRAININGS.append(self)

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.start = _trained(model)

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append({_plain(name): p.grad.to("cpu", copy=True) for name, p in model.named_parameters() if p.grad is not None})

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def on_train_end(self, args, state, control, model, **kwargs):
        self.end = _trained(model)


def reward(prompts, completion_ids, **columns):
    """The share of an answer's tokens that are even numbers, and a little for their sum, so that no two answers are worth the same."""
    scores = [sum(token % 2 == 0 for token in ids) / len(ids) + sum(ids) / 10_000 for ids in completion_ids]
    questions = [messages[-1]["content"] for messages in prompts]
    ANSWERS.append([(question, list(ids), score) for question, ids, score in zip(questions, completion_ids, scores, strict=True)])
    return scores


def _trained(model):
    return {_plain(name): p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}


def _plain(name):
    """The value head is a part of the model while it trains."""
    return name[name.index("value_head") :] if "value_head" in name else name


def moved(training):
    """By how much each parameter is another than at first."""
    return {name: torch.sub(value, training.start[name]) for name, value in training.end.items()}

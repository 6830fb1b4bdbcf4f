"""A callback and a reward function that record what llmmod computes; a configuration names them, as users name their own."""

from __future__ import annotations

import torch
from transformers import TrainerCallback

TRAININGS: list[Observer] = []
ANSWERS: list[list[tuple[str, list[int], float]]] = []  # (question, ids of the answer, reward) of each call of the reward function


class Observer(TrainerCallback):
    """Records the trained weights before and after training, and each step's loss and gradient; the newest is `TRAININGS[-1]`."""

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
    """The share of even token ids in an answer, plus a little for their sum, so that different answers get different rewards."""
    scores = [sum(token % 2 == 0 for token in ids) / len(ids) + sum(ids) / 10_000 for ids in completion_ids]
    questions = [messages[-1]["content"] for messages in prompts]
    ANSWERS.append([(question, list(ids), score) for question, ids, score in zip(questions, completion_ids, scores, strict=True)])
    return scores


def _trained(model):
    return {_plain(name): p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}


def _plain(name):
    """A parameter's name; the value head loses the prefix that it has as a part of the model in training."""
    return name[name.index("value_head") :] if "value_head" in name else name


def moved(training):
    """The change of each parameter since the start."""
    return {name: torch.sub(value, training.start[name]) for name, value in training.end.items()}

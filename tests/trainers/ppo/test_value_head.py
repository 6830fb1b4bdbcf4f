"""The value head: how much an optimizer step changes it, for every width of the model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llmmod.trainers.ppo.trainer import new_value_head


def model(width):
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=width))
    return SimpleNamespace(config=config, get_output_embeddings=lambda: torch.nn.Linear(width, 2))


@pytest.mark.parametrize("width", [16, 576])
def test_a_step_of_adam_moves_a_value_by_the_rate_times_the_root_of_the_width(width):
    """Adam's first step moves each weight by the learning rate. For a state of ones, the value moves by rate * (sqrt(width) + 1)."""
    head, state = new_value_head(model(width)), torch.ones(1, width)
    assert head(state).item() == 0.0
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    (head(state) - 100.0).square().sum().backward()
    optimizer.step()
    assert head(state).item() == pytest.approx(1e-3 * (width**0.5 + 1), rel=1e-4)

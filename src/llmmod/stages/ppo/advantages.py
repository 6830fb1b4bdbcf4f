"""How much better a token was than the value head had expected: generalised advantage estimation (Schulman et al. 2016)."""

from __future__ import annotations

import torch


def advantages_and_returns(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE (eq. 16), and the returns that the value head is to learn: advantages plus values. Both 0 outside the mask.

    An answer that was cut off ends like any other: its score, penalty included, is for what it is, and nothing comes after it.

    Args:
        rewards: [batch, seq].
        values: expected at each token before it is written, [batch, seq].
        mask: the answers' tokens, from the first on; bool [batch, seq].
        gamma: what a reward one token later is worth.
        lam: 1: returns less values, without bias; 0: the next value alone is believed.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for place in reversed(range(values.shape[1])):
        surprise = rewards[:, place] + gamma * next_value - values[:, place]
        # Behind an answer's end all three are 0, so that it starts from nothing.
        advantage = surprise + gamma * lam * advantage
        advantages[:, place], next_value = advantage, values[:, place]
    return advantages, advantages + values

"""The formulas of PPO: KL penalty, rewards of tokens, generalised advantage estimation, and the losses.

The losses are per token and not averaged here: the mean over a micro-batch would weight a token by the other tokens of its micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from llmmod.trainers.means import RunningMoments

Reduce = Callable[[torch.Tensor], torch.Tensor]  # the sum of a tensor over all processes
_MOST_ERROR = 0.2  # a target that is missed by more changes the coefficient no further (Ziegler et al. 2019, eq. 3)
_NO_SPREAD = 1e-8  # a standard deviation of scores that never varied
_EPSILON = 1e-8  # added to a variance


def token_kl(logps: torch.Tensor, reference: torch.Tensor, *, estimator: str = "k1") -> torch.Tensor:
    """Estimates of the KL divergence at each token, from the log-probabilities of the sampled tokens alone.

    Args:
        logps: of the sampled tokens under the policy that sampled them, [batch, seq].
        reference: of the same tokens under the reference; or under the policy after an update, which shows how far it went.
        estimator: k1: log p - log q, unbiased, of either sign; k3: q/p - 1 - log(q/p), unbiased, never negative
            (Schulman 2020, "Approximating KL divergence").
    """
    log_ratio = logps - reference
    return log_ratio if estimator == "k1" else torch.exp(-log_ratio) - 1 + log_ratio


@dataclass
class KlCoefficient:
    """The penalty of a nat of divergence, in units of reward; it keeps the policy near the reference (Ziegler et al. 2019, section 2.2).

    Args:
        value: the coefficient.
        target: nats per completion that the coefficient steers to; None: it is constant.
        horizon: completions in which an error of a fifth of the target changes the coefficient by a fifth.
    """

    value: float
    target: float | None = None
    horizon: float = 10_000

    def update(self, kl: float, completions: int) -> None:
        """Adapt to a rollout: increase the penalty if the policy went too far, decrease it if it did not go far enough.

        Args:
            kl: nats, summed over the tokens of a completion, in the mean over completions.
            completions: of the rollout, all processes.
        """
        if self.target is not None:
            error = min(max(kl / self.target - 1, -_MOST_ERROR), _MOST_ERROR)
            self.value *= 1 + error * completions / self.horizon


@dataclass
class ScoreScale:
    """Scales scores: the points of a rule and the logits of a reward model differ by orders of magnitude.

    Args:
        scale: divide by the running standard deviation (Engstrom et al. 2020; Zheng et al. 2023, section 5.3.1).
        norm: subtract the running mean first; only with `scale`.
        clip: then limit scores to ± this; None: don't clip.
    """

    scale: bool = False
    norm: bool = False
    clip: float | None = None
    moments: RunningMoments = field(default_factory=RunningMoments)

    def __call__(self, scores: torch.Tensor, all_scores: torch.Tensor | None = None) -> torch.Tensor:
        """The scaled scores, [batch].

        Args:
            scores: of this process, [batch].
            all_scores: of all processes, for the running moments; None: there is one process.
        """
        self.moments.update(scores if all_scores is None else all_scores)
        if self.scale:
            # Scores that never varied are not scaled.
            std = self.moments.std
            scores = (scores - (self.moments.mean if self.norm else 0.0)) / (std if std > _NO_SPREAD else 1.0)
        return scores if self.clip is None else scores.clamp(-self.clip, self.clip)


def apply_missing_eos_penalty(scores: torch.Tensor, ended: torch.Tensor, penalty: float | None) -> torch.Tensor:
    """The scores, less `penalty` for completions that were cut off (`missing_eos_penalty`).

    Args:
        scores: scaled already, so that the weight of the penalty does not depend on their spread, [batch].
        ended: whether a completion has a terminator, bool [batch].
        penalty: None: no penalty.
    """
    return scores if penalty is None else scores - penalty * (~ended).to(scores)


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, *, kl_coef: float) -> torch.Tensor:
    """The reward of each token: minus the penalty of its KL, plus the score at the last token (Ziegler et al. 2019, eq. 2).

    Args:
        scores: [batch].
        kl: [batch, seq].
        mask: the completion tokens, bool [batch, seq].
        kl_coef: penalty of a nat.
    """
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = mask.sum(1, keepdim=True) - 1  # [batch, 1]
    has_tokens = last >= 0
    return rewards.scatter_add(1, last.clamp(min=0), torch.where(has_tokens, scores[:, None], 0.0).to(rewards))


def advantages_and_returns(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE (Schulman et al. 2016, eq. 16), and returns (advantages plus values), the target of the value head. Both are 0 outside the mask.

    A completion that was cut off ends like any other: its score includes the penalty, and no reward follows.

    Args:
        rewards: [batch, seq].
        values: expected before each token is written, [batch, seq].
        mask: the completion tokens, bool [batch, seq].
        gamma: discount of a reward one token later.
        lam: 1: returns less values, unbiased; 0: only the next value counts.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for place in reversed(range(values.shape[1])):
        delta = rewards[:, place] + gamma * next_value - values[:, place]
        # After the end of a completion all three are 0.
        advantage = delta + gamma * lam * advantage
        advantages[:, place], next_value = advantage, values[:, place]
    return advantages, advantages + values


def one_process(value: torch.Tensor) -> torch.Tensor:
    """The sum over all processes if there is only one."""
    return value


def masked_moments(values: torch.Tensor, mask: torch.Tensor, reduce: Reduce = one_process) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (divided by the count) of the values in `mask`, scalars; 0 and 0 if it is empty.

    Args:
        values: of any shape.
        mask: bool, of the same shape.
        reduce: sums over processes.
    """
    count = reduce(mask.sum().to(values)).clamp(min=1)
    mean = reduce(values[mask].sum()) / count
    return mean, reduce((values[mask] - mean).square().sum()) / count


def whitened(values: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True, reduce: Reduce = one_process) -> torch.Tensor:
    """The values scaled to mean 0 and variance 1 over the mask, 0 outside it; all 0 if they don't vary.

    Args:
        values: [batch, seq].
        mask: bool [batch, seq].
        shift_mean: False keeps the mean, for rewards, whose sign has a meaning (Huang et al. 2024, detail 14).
        reduce: sums over processes.
    """
    mean, variance = masked_moments(values, mask, reduce)
    white = (values - mean) * torch.rsqrt(variance + _EPSILON)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


def policy_losses(
    logps: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, *, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped surrogate loss (Schulman et al. 2017, eq. 7, negated) of each token, and whether it is clipped.

    Args:
        logps: of the sampled tokens under the policy in training.
        old: under the policy that sampled them.
        advantages: of the same shape.
        cliprange: how far from 1 the ratio of the two may go before a further gain does not count.
    """
    ratio = torch.exp(logps - old)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(unclipped, clipped), clipped > unclipped


def value_losses(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, *, cliprange_value: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error of each value, clipped around the value at the time of the rollout, and whether it is clipped.

    Args:
        values: now.
        old: at the time of the rollout.
        returns: the targets.
        cliprange_value: how far a value may move before the larger of the two errors counts; None: don't clip.
    """
    unclipped = (values - returns).square()
    if cliprange_value is None:
        return 0.5 * unclipped, torch.zeros_like(unclipped, dtype=torch.bool)
    near = torch.minimum(torch.maximum(values, old - cliprange_value), old + cliprange_value)
    clipped = (near - returns).square()
    return 0.5 * torch.maximum(unclipped, clipped), clipped > unclipped


def explained_variance(errors: float, returns: float) -> float:
    """The share of the returns' variance that the values explain: at most 1, 0 for a constant, below 0 if they are worse than a constant.

    Args:
        errors: variance of returns less values.
        returns: variance of returns; if it is 0, so is the share.
    """
    return 1 - errors / returns if returns > 0 else 0.0

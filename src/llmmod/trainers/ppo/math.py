"""How far the policy has gone from the reference: per token, and what a unit of it costs.

The penalty keeps the policy near the reference, where a reward model was trained and can be believed (Ziegler et al. 2019, section 2.2).

From an answer's score to its tokens' rewards: scaled, clipped, less what divergence and a missing end cost.

How much better a token was than the value head had expected: generalised advantage estimation (Schulman et al. 2016).

Means and variances of a rollout's real tokens, padding left out; of several processes together where they train together.

PPO's losses, token by token, and what tells whether an update went well (Schulman et al. 2017; Huang et al. 2024).

They aren't averaged here: a mean over each micro-batch would weigh tokens by the company they came in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from llmmod.trainers.means import RunningMoments

_MOST_ERROR = 0.2  # of a target that is missed by more, the coefficient takes no further notice (Ziegler et al. 2019, eq. 3)


def token_kl(log_probs: torch.Tensor, reference: torch.Tensor, *, estimator: str = "k1") -> torch.Tensor:
    """Estimates of the KL divergence at each token, from the log-probabilities of the sampled tokens alone.

    Args:
        log_probs: of the sampled tokens under the policy that sampled them, [batch, seq].
        reference: of the same tokens under the reference; or under the policy after an update, which shows how far it went.
        estimator: k1: log p - log q, unbiased, of either sign; k3: q/p - 1 - log(q/p), unbiased, never negative
            (Schulman 2020, "Approximating KL divergence").
    """
    log_ratio = log_probs - reference
    return log_ratio if estimator == "k1" else torch.exp(-log_ratio) - 1 + log_ratio


@dataclass
class KlCoefficient:
    """What a nat of divergence costs, in units of reward.

    Args:
        value: the coefficient.
        target: nats an answer that the coefficient is to steer to; None: it stays as it is.
        horizon: answers in which an error of a fifth of the target changes the coefficient by a fifth.
    """

    value: float
    target: float | None = None
    horizon: float = 10_000

    def update(self, kl: float, answers: int) -> None:
        """Take note of a rollout (Ziegler et al. 2019, section 2.2): cost more where the policy goes too far, less where not far enough.

        Args:
            kl: mean over answers of their tokens' sum, nats.
            answers: of the rollout, all processes.
        """
        if self.target is not None:
            error = min(max(kl / self.target - 1, -_MOST_ERROR), _MOST_ERROR)
            self.value *= 1 + error * answers / self.horizon


@dataclass
class ScoreScale:
    """What is done to scores before they reward: a rule's points and a reward model's logits differ by orders of magnitude.

    Args:
        scale: divide by the running standard deviation (Engstrom et al. 2020; Zheng et al. 2023, section 5.3.1).
        norm: take away the running mean first; only with `scale`.
        clip: scores, after that, stay within ± this; None: they aren't clipped.
    """

    scale: bool = False
    norm: bool = False
    clip: float | None = None
    moments: RunningMoments = field(default_factory=RunningMoments)

    def __call__(self, scores: torch.Tensor, everybody: torch.Tensor | None = None) -> torch.Tensor:
        """The scaled scores, [batch].

        Args:
            scores: of this process's answers, [batch].
            everybody: of all processes' answers, which the moments take in; None: there is one process.
        """
        self.moments.update(scores if everybody is None else everybody)
        if self.scale:
            # Scores that never varied have no scale of their own.
            std = self.moments.std
            scores = (scores - (self.moments.mean if self.norm else 0.0)) / (std if std > _NO_SPREAD else 1.0)
        return scores if self.clip is None else scores.clamp(-self.clip, self.clip)


_NO_SPREAD = 1e-8


def apply_missing_eos_penalty(scores: torch.Tensor, ended: torch.Tensor, penalty: float | None) -> torch.Tensor:
    """The scores, less `penalty` where an answer has no end: it was cut off (`missing_eos_penalty`).

    Args:
        scores: scaled already, so that the penalty's weight doesn't hang on how the scores spread, [batch].
        ended: whether the answer came to its end, bool [batch].
        penalty: None: there is none.
    """
    return scores if penalty is None else scores - penalty * (~ended).to(scores)


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, *, kl_coef: float) -> torch.Tensor:
    """Each token's reward: what its divergence costs, and with the last token of an answer its score (Ziegler et al. 2019, eq. 2).

    Args:
        scores: [batch].
        kl: [batch, seq].
        mask: the answers' tokens, from the first on; bool [batch, seq].
        kl_coef: reward a nat.
    """
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = mask.sum(1, keepdim=True) - 1  # [batch, 1]
    has_tokens = last >= 0
    return rewards.scatter_add(1, last.clamp(min=0), torch.where(has_tokens, scores[:, None], 0.0).to(rewards))


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


Reduce = Callable[[torch.Tensor], torch.Tensor]  # the sum of a tensor over all processes
_EPSILON = 1e-8


def alone(value: torch.Tensor) -> torch.Tensor:
    """The sum over all processes where there is one."""
    return value


def masked_moments(values: torch.Tensor, mask: torch.Tensor, reduce: Reduce = alone) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (divided by the number) of the values that `mask` keeps, scalars; 0 and 0 where it keeps none.

    Args:
        values: of any shape.
        mask: bool, of the same shape.
        reduce: adds up over processes.
    """
    count = reduce(mask.sum().to(values)).clamp(min=1)
    mean = reduce(values[mask].sum()) / count
    return mean, reduce((values[mask] - mean).square().sum()) / count


def whitened(values: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True, reduce: Reduce = alone) -> torch.Tensor:
    """The values with mean 0 and variance 1 over the mask, 0 outside it; all 0 where they don't vary.

    Args:
        values: [batch, seq].
        mask: bool [batch, seq].
        shift_mean: false keeps their mean: rewards whose sign means something (Huang et al. 2024, detail 14).
        reduce: adds up over processes.
    """
    mean, variance = masked_moments(values, mask, reduce)
    white = (values - mean) * torch.rsqrt(variance + _EPSILON)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


def policy_losses(
    log_probs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, *, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped surrogate (Schulman et al. 2017, eq. 7, negated) of each token, and whether clipping made it.

    Args:
        log_probs: of the sampled tokens under the policy in training.
        old: under the policy that sampled them.
        advantages: of the same shape.
        cliprange: how far from 1 the ratio of the two may go before a further gain counts for nothing.
    """
    ratio = torch.exp(log_probs - old)
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(free, clipped), clipped > free


def value_losses(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, *, cliprange_value: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error of each value, clipped around the value at the time of the rollout, and whether clipping made it.

    Args:
        values: now.
        old: at the time of the rollout.
        returns: what they should have been.
        cliprange_value: how far a value may move before the worse of the two errors counts; None: as far as it likes.
    """
    free = (values - returns).square()
    if cliprange_value is None:
        return 0.5 * free, torch.zeros_like(free, dtype=torch.bool)
    near = torch.minimum(torch.maximum(values, old - cliprange_value), old + cliprange_value)
    clipped = (near - returns).square()
    return 0.5 * torch.maximum(free, clipped), clipped > free


def explained_variance(errors: float, returns: float) -> float:
    """The share of the returns' variance that the values explain: 1 at best, 0 of a constant, below 0 where they mislead.

    Args:
        errors: variance of returns less values.
        returns: variance of returns; 0: there was nothing to explain, and the share is 0.
    """
    return 1 - errors / returns if returns > 0 else 0.0

"""How far the policy has gone from the reference: per token, and what a unit of it costs.

The penalty keeps the policy near the reference, where a reward model was trained and can be believed (Ziegler et al. 2019, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MOST_ERROR = 0.2  # of a target that is missed by more, the coefficient takes no further notice (Ziegler et al. 2019, eq. 3)


def token_kl(log_probs: torch.Tensor, reference: torch.Tensor, *, estimator: str = "k1") -> torch.Tensor:
    """Estimates of the KL divergence of the policy from the reference at each token, of the token that was sampled alone.

    Args:
        log_probs: of the sampled tokens under the policy that sampled them, [batch, seq].
        reference: the same under the reference, [batch, seq].
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

"""From an answer's score to its tokens' rewards: scaled, clipped, less what divergence and a missing end cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from llmmod.stages.answering.moments import RunningMoments


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


def without_end(scores: torch.Tensor, ended: torch.Tensor, penalty: float | None) -> torch.Tensor:
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

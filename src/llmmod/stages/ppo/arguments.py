"""What PPO can be told, beside what any trainer can: the names are those of trl, which had such a trainer until September 2026."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

_BEST = "reward"


@dataclass
class PpoArguments(TrainingArguments):  # type: ignore[misc]
    """The arguments of `stages.ppo.trainer.PpoTrainer`; what each means, `schema.training.ppo.PpoConf` says."""

    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    max_completion_length: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    generation_kwargs: dict[str, Any] = field(default_factory=dict)
    generation_batch_size: int | None = None
    num_generations_eval: int = 1
    reward: dict[str, Any] = field(default_factory=dict)
    reward_weights: dict[str, float] = field(default_factory=dict)
    use_score_scaling: bool = False
    use_score_norm: bool = False
    score_clip: float | None = None
    missing_eos_penalty: float | None = None
    kl_coef: float = 0.05
    kl_estimator: str = "k1"
    target: float | None = None
    horizon: float = 10_000.0
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    cliprange: float = 0.2
    cliprange_value: float | None = 0.2
    vf_coef: float = 0.1
    entropy_coef: float = 0.0
    target_kl: float | None = None
    disable_dropout: bool = True
    num_sample_answers: int = 4

    def __post_init__(self) -> None:
        """The best model is the one with the highest reward on held-out prompts, unless something else is named."""
        if self.load_best_model_at_end and getattr(self, "metric_for_best_model", None) is None:
            self.metric_for_best_model, self.greater_is_better = _BEST, True
        if getattr(self, "ddp_find_unused_parameters", None) is None:
            # The value head works beside the model's forward, where DDP would look for it, and take it for unused.
            self.ddp_find_unused_parameters = False
        super().__post_init__()

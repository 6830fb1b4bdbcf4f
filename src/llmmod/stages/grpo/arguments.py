"""What GRPO can be told: trl's arguments, and rewards by name."""

from __future__ import annotations

from dataclasses import dataclass

from trl import GRPOConfig

from llmmod.schema.training.grpo import GrpoFields

_BEST = "reward"


@dataclass
class GrpoArguments(GrpoFields, GRPOConfig):  # type: ignore[misc]
    """The arguments of `stages.grpo.trainer.GrpoTrainer`; what is not trl's, and its default, `GrpoFields` says."""

    def __post_init__(self) -> None:
        """The best model is the one with the highest reward on held-out prompts, unless something else is named."""
        if self.load_best_model_at_end and getattr(self, "metric_for_best_model", None) is None:
            self.metric_for_best_model, self.greater_is_better = _BEST, True
        super().__post_init__()

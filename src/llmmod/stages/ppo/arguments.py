"""The arguments of PPO's trainer: those of any trainer, and PPO's own."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import TrainingArguments

from llmmod.schema.training.ppo import PpoFields

_BEST = "reward"


@dataclass
class PpoArguments(PpoFields, TrainingArguments):  # type: ignore[misc]
    """The arguments of `stages.ppo.trainer.PpoTrainer`; what each of PPO's own means, and its default, `PpoFields` says."""

    def __post_init__(self) -> None:
        """The best model is the one with the highest reward on held-out prompts, unless something else is named."""
        if self.load_best_model_at_end and getattr(self, "metric_for_best_model", None) is None:
            self.metric_for_best_model, self.greater_is_better = _BEST, True
        if getattr(self, "ddp_find_unused_parameters", None) is None:
            # The value head works beside the model's forward, where DDP would look for it, and take it for unused.
            self.ddp_find_unused_parameters = False
        super().__post_init__()

"""What trainers share whose model answers prompts: put between StageTrainer and the library's class.

Prompts come in rollouts, held-out answers are drawn with the same random numbers each time, the course of the training is drawn, and what
is saved is the adapter that is trained, none of a reward's beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from transformers import Trainer

from llmmod.errors import ConfigError, Problem
from llmmod.instantiate import build
from llmmod.models.generation import Reader
from llmmod.protocols import Metric
from llmmod.stages.answering.course import Panel, course
from llmmod.stages.answering.moments import RunningMoments
from llmmod.stages.answering.prompts import RolloutSampler
from llmmod.stages.answering.sampling import drawing, seed_of
from llmmod.stages.means import Means
from llmmod.stages.rewards import Rewards
from llmmod.stages.trainer import StageTrainer


class AnsweringTrainer(StageTrainer):
    """A mixin; a class that has it makes answers and a loss of them, and adds up what it measures of held-out prompts.

    Args:
        args: of the trainer.
        train_dataset: with the column `prompt_ids`; further columns are for reward functions.
        kwargs: as of the library's class.

    Raises:
        ConfigError: the prompts are streamed.
    """

    stage: ClassVar[str]  # whose name its files have
    panels: ClassVar[Sequence[Panel]]  # of the picture of its course
    rewards: Rewards
    reader: Reader  # of completions; set by who knows the render, else they are read as they are

    def __init__(self, *, args: Any, train_dataset: Any, **kwargs: Any) -> None:
        if not hasattr(train_dataset, "__len__"):
            raise ConfigError(Problem("dataset.streaming", f"true, and {self.stage} comes back to its prompts", do="Set it to false"))
        super().__init__(args=args, train_dataset=train_dataset, **kwargs)
        self.reader = Reader(self.processing_class)
        self.initial: dict[str, torch.Tensor] | None = None  # weights before training; see `answering.reference`
        self._held_out, self._earned = Means(), RunningMoments()
        self.compared: list[str] = []  # what an evaluation measures of the answers' texts, as it is logged
        self._of_texts: list[Metric] = []

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; see the class."""
        with course(lambda: self.state, Path(self.args.output_dir) / f"{self.stage}.png", self.panels):
            return super().train(*args, **kwargs)

    def release(self) -> None:
        """Let go of what only training needs."""
        self.rewards.release()
        self.initial = None

    @property
    def data_seed(self) -> int:
        """Of the order of prompts and answers."""
        return int(self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def rollout_sampler(self, dataset: Any, *, size: int, times: int, each: int = 1) -> RolloutSampler:
        """The order in which prompts are answered; the arguments are those of RolloutSampler."""
        shuffle = self.args.train_sampling_strategy != "sequential"
        return RolloutSampler(len(dataset), size=size, times=times, seed=self.data_seed, shuffle=shuffle, each=each)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the library's, with means over all held-out prompts, and the reward's standard error; the same random numbers each time."""
        self._of_texts = [build(node) for node in self.args.metrics.values() if node]
        with drawing(seed_of("evaluation", self.args.seed, self.args.process_index)):
            output = Trainer.evaluation_loop(self, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        found, self._earned = self._held_out.take() | {"reward_se": self._earned.standard_error}, RunningMoments()
        of_texts = {name: number for metric in self._of_texts for name, number in metric.compute().items()}
        self.compared = [f"{metric_key_prefix}_{name}" for name in of_texts]
        output.metrics.update({f"{metric_key_prefix}_{name}": number for name, number in (found | of_texts).items()})
        return output

    def measure_texts(self, texts: Sequence[str], labels: Sequence[str | None] | None) -> None:
        """Measure held-out answers of all processes, each against what its row says, where it says anything."""
        pairs = list(zip(texts, labels or [None] * len(texts), strict=True))
        for predict, label in gather_object(pairs):
            for metric in self._of_texts:
                if label or not getattr(metric, "needs_label", True):
                    metric.update(predict=predict, label=label or "")

    def state_file(self, checkpoint: str) -> Path:
        """What a process keeps of its own in a checkpoint."""
        return Path(checkpoint) / f"{self.stage}_state_{self.args.process_index}.pt"

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with self.rewards.left_out(self.model):
            super()._save(output_dir, state_dict)

"""What trainers share whose model answers prompts: put between StageTrainer and the library's class.

Prompts come in rollouts, held-out answers are drawn with the same random numbers each time, the course of the training is drawn, and what
is saved is the adapter that is trained, none of a reward's beside it.

Answers of the policy: the settings they are sampled with, and random numbers of their own.

Which prompts are answered when: each rollout's, as many times in a row as the trainer takes a batch of it.

The Trainer counts the batches of its data loader to know how many optimizer steps an epoch has, when the learning rate is to be where,
and from where a resumed run goes on. So each batch that it takes is the prompts of a whole rollout, and the same for all steps of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler
from transformers import GenerationConfig, Trainer

from llmmod.errors import ConfigError, Problem
from llmmod.instantiate import build
from llmmod.models.generation.settings import Reader, generation_config
from llmmod.protocols import Metric
from llmmod.trainers.base import StageTrainer
from llmmod.trainers.callbacks.curves import Panel, course
from llmmod.trainers.means import Means, RunningMoments
from llmmod.trainers.online.rewards import Rewards
from llmmod.upstream import require_upstream

require_upstream(__name__)

# What a checkpoint brings along and would have answers sampled from something else than what the model says -> as good as not set.
_PLAIN = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "num_beams": 1,
}  # fmt: skip
_OF_GRPO = ("min_p", "repetition_penalty", "cache_implementation")  # has fields for these, too


def sampling_settings(args: Any, model: Any) -> GenerationConfig:
    """How answers are sampled; they end with what the model's own settings say, which are the render's stop words.

    Args:
        args: PpoArguments, or GrpoArguments.
        model: a PreTrainedModel or PeftModel.

    Raises:
        ConfigError: `training.generation_kwargs` has a field that GenerationConfig doesn't.
    """
    ends = model.generation_config.eos_token_id
    fields = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k, "max_new_tokens": args.max_completion_length}
    fields |= {name: plain for name, plain in _PLAIN.items() if getattr(model.generation_config, name, None) is not None}
    fields |= {name: getattr(args, name) for name in _OF_GRPO if getattr(args, name, None) is not None}
    known = GenerationConfig().to_dict()
    if unknown := [name for name in args.generation_kwargs if name not in known]:
        raise ConfigError(Problem(f"training.generation_kwargs.{unknown[0]}", "GenerationConfig has no such field"))
    chosen = GenerationConfig(do_sample=True, **{**fields, **args.generation_kwargs})
    stop_ids = [ends] if isinstance(ends, int) else list(ends or [])
    return generation_config(chosen, model, stop_ids=stop_ids, pad_id=model.generation_config.pad_token_id)


def seed_of(*parts: object) -> int:
    """A seed that hangs on all of its parts, and is the same on every machine."""
    return random.Random(" ".join(map(str, parts))).getrandbits(62)


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Within it, random numbers come from a seed; afterwards those of training go on as if nothing had been drawn.

    So a rollout depends on the policy and its number alone, and a resumed run samples what the uninterrupted one would have.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class RolloutSampler(Sampler[int]):
    """Numbers of examples: a rollout's, repeated, then the next one's, in an order of the epoch's own.

    Where the examples don't fill the last rollout of an epoch, its first ones come again.

    Args:
        examples: how many there are.
        size: of a rollout, all processes together.
        times: each rollout's numbers come so often.
        seed: of the order.
        shuffle: false: the order of the data.
        each: a number comes so often in a row; a group of answers to one prompt.
    """

    def __init__(self, examples: int, *, size: int, times: int, seed: int, shuffle: bool = True, each: int = 1) -> None:
        self._examples, self._size, self._times, self._seed, self._shuffle = examples, size, times, seed, shuffle
        self._each = each
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next; accelerate's data loaders call it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._examples // self._size) * self._size * self._times * self._each

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        for start in range(0, self._examples, self._size):
            numbers = [order[place % self._examples] for place in range(start, start + self._size) for _ in range(self._each)]
            for _ in range(self._times):
                yield from numbers

    def _order(self) -> list[int]:
        if not self._shuffle:
            return list(range(self._examples))
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return torch.randperm(self._examples, generator=generator).tolist()


def columns(examples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A batch of prompts: each column's values, as they are."""
    return {name: [example.get(name) for example in examples] for name in examples[0]}


class OnlineTrainer(StageTrainer):
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
        with isolated_rng(seed_of("evaluation", self.args.seed, self.args.process_index)):
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

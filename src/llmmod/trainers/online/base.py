"""The common base of grpo and ppo: a mixin between StageTrainer and the library's class, and the sampling of completions.

The Trainer counts the batches of its data loader to find the optimizer steps of an epoch, the learning rate and the place where a resumed
run continues. So each batch has the prompts of a whole rollout and is repeated for all steps that learn from that rollout
(`RolloutSampler`). Sampling has its own random numbers, and held-out completions always use the same ones. A checkpoint contains the
trained adapter but not the adapters of reward models.
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
from llmmod.trainers.callbacks.progress import Panel, metric_curves
from llmmod.trainers.means import Means, RunningMoments
from llmmod.trainers.online.completions import Samples
from llmmod.trainers.online.rewards import Rewards
from llmmod.upstream import require_upstream

require_upstream(__name__)

# Settings of a checkpoint that would change the distribution completions are sampled from -> the value that switches them off.
_NEUTRAL = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "num_beams": 1,
}  # fmt: skip
_GRPO_FIELDS = ("min_p", "repetition_penalty", "cache_implementation")  # further sampling arguments of grpo


def sampling_settings(args: Any, model: Any) -> GenerationConfig:
    """How completions are sampled. They end at the stop tokens of the model's generation config, which are the render's.

    Args:
        args: PpoArguments, or GrpoArguments.
        model: a PreTrainedModel or PeftModel.

    Raises:
        ConfigError: `training.generation_kwargs` has a field that GenerationConfig doesn't.
    """
    ends = model.generation_config.eos_token_id
    fields = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k, "max_new_tokens": args.max_completion_length}
    fields |= {name: neutral for name, neutral in _NEUTRAL.items() if getattr(model.generation_config, name, None) is not None}
    fields |= {name: getattr(args, name) for name in _GRPO_FIELDS if getattr(args, name, None) is not None}
    known = GenerationConfig().to_dict()
    if unknown := [name for name in args.generation_kwargs if name not in known]:
        raise ConfigError(Problem(f"training.generation_kwargs.{unknown[0]}", "not a field of GenerationConfig"))
    chosen = GenerationConfig(do_sample=True, **{**fields, **args.generation_kwargs})
    stop_ids = [ends] if isinstance(ends, int) else list(ends or [])
    return generation_config(chosen, model, stop_ids=stop_ids, pad_id=model.generation_config.pad_token_id)


def seed_of(*parts: object) -> int:
    """A seed that depends on all of its parts, and is the same on every machine."""
    return random.Random(" ".join(map(str, parts))).getrandbits(62)


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """A context in which random numbers come from a seed; afterwards, the random state of training is as it was.

    So a rollout depends on the policy and on its number only, and a resumed run samples what the uninterrupted run would have.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class RolloutSampler(Sampler[int]):
    """The indices of a rollout's prompts, repeated, then those of the next rollout, in an order that depends on the epoch.

    The first prompts of an epoch fill up its last rollout.

    Args:
        examples: the number of prompts.
        size: prompts of a rollout, all processes together.
        times: how often the indices of a rollout are repeated.
        seed: of the order.
        shuffle: False: the order of the data.
        each: consecutive repetitions of an index, for a group of completions of one prompt.
    """

    def __init__(self, examples: int, *, size: int, times: int, seed: int, shuffle: bool = True, each: int = 1) -> None:
        self._examples, self._size, self._times, self._seed, self._shuffle = examples, size, times, seed, shuffle
        self._each = each
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch; accelerate's data loaders call it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._examples // self._size) * self._size * self._times * self._each

    def __iter__(self) -> Iterator[int]:
        if self._shuffle:
            generator = torch.Generator().manual_seed(self._seed + self._epoch)
            order = torch.randperm(self._examples, generator=generator).tolist()
        else:
            order = list(range(self._examples))
        for start in range(0, self._examples, self._size):
            numbers = [order[place % self._examples] for place in range(start, start + self._size) for _ in range(self._each)]
            for _ in range(self._times):
                yield from numbers


def columns(examples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A batch of prompts: the values of each column, unchanged."""
    return {name: [example.get(name) for example in examples] for name in examples[0]}


class OnlineTrainer(StageTrainer):
    """A mixin. The class that has it samples completions, computes their loss, and adds up the metrics of held-out prompts.

    Args:
        args: of the trainer.
        train_dataset: has the column `prompt_ids`; further columns are passed to reward functions.
        kwargs: passed to the library's class.

    Raises:
        ConfigError: the prompts are streamed.
    """

    stage: ClassVar[str]  # the stem of its files
    panels: ClassVar[Sequence[Panel]]  # of the plot of its metrics
    shares_last_batch = False
    completions_each = 1  # rows of an evaluation's batches for each held-out prompt
    rewards: Rewards
    reader: Reader

    def __init__(self, *, args: Any, train_dataset: Any, **kwargs: Any) -> None:
        if not hasattr(train_dataset, "__len__"):
            raise ConfigError(Problem("dataset.streaming", f"true, but {self.stage} reads its prompts again", do="Set it to false"))
        super().__init__(args=args, train_dataset=train_dataset, **kwargs)
        self.reader = Reader(self.processing_class)
        self.initial: dict[str, torch.Tensor] | None = None  # the weights before training; see `trainers.reference`
        self._held_out, self._rewards_so_far = Means(), RunningMoments()
        self.compared: list[str] = []  # metrics of texts whose value before the training is also reported
        self._text_metrics: list[Metric] = []
        self._rows_measured = self._rows_held_out = 0  # completions, or prompts in ppo, of all processes
        self.samples = Samples(Path(self.args.output_dir), self.args.num_sample_answers if self.is_world_process_zero() else 0)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; see the class."""
        with metric_curves(lambda: self.state, Path(self.args.output_dir) / f"{self.stage}.png", self.panels):
            return super().train(*args, **kwargs)

    def begin(self) -> None:
        """See `ResumableTrainer`; removes the samples of steps that the run repeats."""
        super().begin()
        self.samples.forget_after(self.state.global_step)

    def training_state(self) -> dict[str, Any]:
        """See `ResumableTrainer`; with the metrics of the evaluation before the first step."""
        return super().training_state() | {"compared": self.compared}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `ResumableTrainer`."""
        super().load_training_state(state)
        self.compared = state["compared"]

    def release(self) -> None:
        """Free what only training needs."""
        self.rewards.release()
        self.initial = None

    @property
    def data_seed(self) -> int:
        """The seed of the order of prompts and completions."""
        return int(self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def rollout_sampler(self, dataset: Any, *, size: int, times: int, each: int = 1) -> RolloutSampler:
        """The order of prompts; the arguments are those of RolloutSampler."""
        shuffle = self.args.train_sampling_strategy != "sequential"
        return RolloutSampler(len(dataset), size=size, times=times, seed=self.data_seed, shuffle=shuffle, each=each)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The library's evaluation, with means over all held-out prompts and the reward's standard error."""
        self._text_metrics = [build(node) for node in self.args.metrics.values() if node]
        dataloader = args[0] if args else kwargs["dataloader"]
        self._rows_measured, self._rows_held_out = 0, len(dataloader.dataset) * self.completions_each
        with isolated_rng(seed_of("evaluation", self.args.seed)):
            output = Trainer.evaluation_loop(self, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        self._held_out.load(*gather_object([self._held_out.state()]))
        found, self._rewards_so_far = self._held_out.take() | {"reward_se": self._rewards_so_far.standard_error}, RunningMoments()
        text_numbers = {name: number for metric in self._text_metrics for name, number in metric.compute().items()}
        self.compared = [f"{metric_key_prefix}_{name}" for name in text_numbers]
        output.metrics.update({f"{metric_key_prefix}_{name}": number for name, number in (found | text_numbers).items()})
        output.metrics.update(self.answer_metrics(metric_key_prefix))
        return output

    def next_held_out(self, count: int) -> tuple[int, int]:
        """The number of the first row of this process's next batch, and how many of its rows are not padding of the last batch.

        The samples for a row depend only on the seed and the row's number, not on batches and processes.

        Args:
            count: rows of the batch: completions, or prompts in ppo.
        """
        torch.manual_seed(seed_of("evaluation", self.args.seed))
        first = self._rows_measured + self.args.process_index * count
        self._rows_measured += self.accelerator.num_processes * count
        return first, max(0, min(count, self._rows_held_out - first))

    def measure_texts(self, texts: Sequence[str], labels: Sequence[str | None] | None) -> None:
        """Measure held-out completions of all processes against the answers of their rows, if those have any."""
        pairs = list(zip(texts, labels or [None] * len(texts), strict=True))
        for predict, label in gather_object(pairs):
            for metric in self._text_metrics:
                if label or not getattr(metric, "needs_label", True):
                    metric.update(predict=predict, label=label or "")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with self.rewards.left_out(self.model):
            super()._save(output_dir, state_dict)

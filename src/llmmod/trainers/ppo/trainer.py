"""`stage=ppo`: Proximal Policy Optimization (Schulman et al. 2017) of a language model, in transformers' training loop.

When the Trainer fetches the batches of an optimizer step, a rollout is collected if one is due: completions are sampled and scored, and
the advantages of their tokens estimated. Several steps then learn from it, each from a part. The Trainer does the rest: accumulation,
clipping, schedule, checkpoints, callbacks, several processes.

Policy, value head, reference and reward model share their weights where they can: see `trainers.reference` and `online.rewards`. The
value head is a linear layer on the policy's trunk that predicts the return from each token on. During training it is a submodule of the
model, so that optimizer, gradient clipping and several processes include it. The saved model is the policy without it; a checkpoint has
it in a separate file, for resuming.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainingArguments
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from llmmod.config.schema.training import PpoFields
from llmmod.errors import ConfigError, Problem, one_line
from llmmod.files.paths import readable_by_umask
from llmmod.models.loading.structure import unwrapped
from llmmod.trainers.means import Means
from llmmod.trainers.online.base import OnlineTrainer, RolloutSampler, columns, isolated_rng, seed_of
from llmmod.trainers.online.completions import score_completions
from llmmod.trainers.online.rewards import rewards_from
from llmmod.trainers.ppo.math import policy_losses, token_kl, value_losses
from llmmod.trainers.ppo.rollout import Rollout, RolloutCollector, in_parts, mini_batch
from llmmod.trainers.reference import initial_weights
from llmmod.upstream import require_upstream

require_upstream(__name__)

VALUE_HEAD = "value_head"  # the submodule's name
_VALUE_HEAD_FILE = "value_head.safetensors"
_BEST = "reward"  # the metric for the best model
_LOSS_METRICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "value_clip_fraction")
_KL_LIMIT = 1.5  # times target_kl, as in OpenAI's Spinning Up and Stable-Baselines3


@dataclass
class PpoArguments(PpoFields, TrainingArguments):  # type: ignore[misc]
    """The arguments of PpoTrainer: those of any trainer, and those of `PpoFields`, which documents them and has their defaults."""

    def __post_init__(self) -> None:
        """The best model has the highest reward on held-out prompts, unless `metric_for_best_model` is set."""
        if self.load_best_model_at_end and getattr(self, "metric_for_best_model", None) is None:
            self.metric_for_best_model, self.greater_is_better = _BEST, True
        if getattr(self, "ddp_find_unused_parameters", None) is None:
            # The value head is used outside the model's forward, so DDP would take it for unused.
            self.ddp_find_unused_parameters = False
        super().__post_init__()


class PpoTrainer(OnlineTrainer, Trainer):  # type: ignore[misc]
    """A trainer for datasets with the column `prompt_ids`; further columns are passed to reward functions."""

    stage = "ppo"
    panels = (
        ("reward", (("score", "score", "tab:green"), ("reward", "reward: score less the KL penalty", "tab:blue"))),
        ("KL to the reference, nats per completion", (("kl", "KL", "tab:red"),)),
    )
    loss_is_scaled_for_ga = True  # divided by the tokens of the whole optimizer step

    def __init__(
        self, model: Any = None, args: PpoArguments | None = None, *, train_dataset: Any = None, data_collator: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=train_dataset, data_collator=data_collator or columns, **kwargs)
        if self.args.disable_dropout:
            disable_dropout_in_model(self.model)
        add_fused_lm_head(unwrapped(self.model), temperature=self.args.temperature, outputs=("log_probs", "entropy"))
        self.value_head = new_value_head(self.model)
        run_dir = Path(self.args.output_dir).parent
        rows = self.args.per_device_train_batch_size
        self.rewards = rewards_from(
            self.args.reward, self.args.reward_weights, model=self.model, tokenizer=self.processing_class, run_dir=run_dir, rows=rows
        )
        self.collector = RolloutCollector(self)
        self.means = Means()
        self.rollout: Rollout | None = None
        self._loss_sums = torch.zeros(len(_LOSS_METRICS) + 1, dtype=torch.float64)

    @property
    def rows_per_step(self) -> int:
        """Completions of a process in an optimizer step."""
        return int(self._train_batch_size * self.args.gradient_accumulation_steps)

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps that learn from one rollout."""
        return int(self.args.num_mini_batches * self.args.num_ppo_epochs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; see the class."""
        self.initial = initial_weights(self.model)
        with with_value_head(self.model, self.value_head):
            return super().train(*args, **kwargs)

    def release(self) -> None:
        """Free what only training needs."""
        super().release()
        self.rollout = None

    # Prompts and rollouts

    def get_train_dataloader(self) -> Any:
        """Batches of the prompts of a whole rollout, each repeated as often as the loop takes a batch for it."""
        size = self.rows_per_step * self.args.num_mini_batches
        return self._get_dataloader(self.train_dataset, "Training", batch_size=size, sampler_fn=self._get_train_sampler, is_training=True)

    def _get_train_sampler(self, train_dataset: Any = None) -> RolloutSampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        size = self.rows_per_step * self.args.num_mini_batches * self.accelerator.num_processes
        return self.rollout_sampler(dataset, size=size, times=self.steps_per_rollout * self.args.gradient_accumulation_steps)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of the next optimizer step, and the number of tokens in them, of all processes."""
        prompts, *_ = (next(epoch_iterator) for _ in range(num_batches))  # they are equal
        step = self.state.global_step
        number, place = divmod(step, self.steps_per_rollout)
        if place == 0 or self.rollout is None:
            with isolated_rng(seed_of("rollout", self.args.seed, step)):
                self.rollout = self.collector.collect(prompts)
        epoch, part = divmod(place, self.args.num_mini_batches)
        order = seed_of("order", self.data_seed, number, self.args.process_index)
        numbers = mini_batch(len(self.rollout.prompts), size=self.rows_per_step, number=part, epoch=epoch, seed=order)
        grouped = self.rollout.lengths() if self.args.train_sampling_strategy == "group_by_length" else None
        pad_id = self.collector.config.pad_token_id
        batches = [self.rollout.batch(part, pad_id=pad_id) for part in in_parts(numbers, self._train_batch_size, by_length=grouped)]
        tokens = self.accelerator.reduce(torch.tensor(float(self.rollout.tokens(numbers)), device=device))
        return batches, tokens

    # The loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """PPO's loss of a micro-batch: the sum over its tokens, divided by the number of tokens of the whole optimizer step."""
        args, mask = self.args, inputs["completion_mask"]
        now = score_completions(model, inputs, value_head=self.value_head, entropy_gradient=bool(args.entropy_coef))
        assert now.values is not None
        policy, clipped = policy_losses(now.logps, inputs["old_logps"], inputs["advantages"], cliprange=args.cliprange)
        value, value_clipped = value_losses(now.values, inputs["old_values"], inputs["returns"], cliprange_value=args.cliprange_value)
        loss = policy + args.vf_coef * value
        if args.entropy_coef:
            loss = loss - args.entropy_coef * now.entropy
        kl = token_kl(inputs["old_logps"], now.logps, estimator="k3")
        numbers = torch.stack([number.detach() for number in (policy, value, now.entropy, kl, clipped, value_clipped, mask)])
        # Added on the CPU: Apple's GPUs don't have float64, and a mask as an index would make the host wait for each of them.
        self._loss_sums += torch.where(mask, numbers, 0.0).cpu().double().sum((1, 2))
        tokens = mask.sum() if num_items_in_batch is None else num_items_in_batch
        # The gradients of several processes are averaged.
        loss = (loss * mask).sum() / tokens * self.accelerator.num_processes
        return (loss, now) if return_outputs else loss

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of one micro-batch; its gradient is accumulated. After the last one of a step, the metrics are added to the means."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            *sums, tokens = self.collector.sum_of_processes(self._loss_sums).tolist()
            self._loss_sums = torch.zeros_like(self._loss_sums)
            found = {name: total / max(tokens, 1) for name, total in zip(_LOSS_METRICS, sums, strict=True)}
            self.means.add(found)
            if self.args.target_kl is not None and found["approx_kl"] > _KL_LIMIT * self.args.target_kl:
                self.rollout = None
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means since the last call."""
        super().log(logs | self.means.take() if "loss" in logs else logs, start_time)

    # Held-out prompts

    def prediction_step(self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None) -> Any:
        """Add a batch to the means of `evaluation_loop`."""
        first, count = self.next_held_out(len(inputs["prompt_ids"]))
        found = self.collector.measure(inputs, first=first, count=count)
        numbers = torch.stack(list(found.values()), dim=1)
        if self.accelerator.num_processes > 1:  # gathered by prompt, which drops the duplicates that fill the last batch
            numbers = self.accelerator.gather_for_metrics(numbers.to(self.args.device)).cpu()
        self._held_out.add(dict(zip(found, numbers.mean(0).tolist(), strict=True)), len(numbers))
        self._rewards_so_far.update(numbers[:, list(found).index("reward")])
        return None, None, None

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with without_value_head(self.model):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_value_head(self.value_head, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with without_value_head(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_value_head(self.value_head, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        with without_value_head(self.model):
            super()._load_best_model()

    def training_state(self) -> dict[str, Any]:
        """See `ResumableTrainer`; with the rollout that the next steps learn from."""
        rollout = None if self.rollout is None else self.rollout.state()
        return super().training_state() | self.collector.state() | {"means": self.means.state(), "rollout": rollout}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `ResumableTrainer`."""
        super().load_training_state(state)
        self.rollout = None if state["rollout"] is None else Rollout.from_state(state["rollout"])
        self.means.load(state["means"])
        self.collector.load(state)


class ValueHead(nn.Linear):
    """A linear layer whose output is divided by the square root of the number of channels.

    A step of Adam moves each weight by about the learning rate, however small the error, and so a value by that times the number of
    channels. On a tiny model of 32 channels whose adapter learns at 0.12, the explained variance of the first five rollouts was -6 in the
    mean of four seeds; with the division, it was -0.9. The final reward was the same.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values, [tokens, 1], of hidden states, [tokens, channels]."""
        return nn.functional.linear(hidden, self.weight * self.in_features**-0.5, self.bias)


def new_value_head(model: Any) -> ValueHead:
    """A head of zeros in float32; a random head would send random gradients into the trunk."""
    base = unwrapped(model)
    width = base.config.get_text_config().hidden_size
    head = ValueHead(width, 1, dtype=torch.float32, device=base.get_output_embeddings().weight.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


@contextmanager
def with_value_head(model: Any, head: nn.Module) -> Iterator[None]:
    """A context in which the head is a submodule of the model."""
    base = unwrapped(model)
    base.add_module(VALUE_HEAD, head)
    try:
        yield
    finally:
        base._modules.pop(VALUE_HEAD, None)


@contextmanager
def without_value_head(model: Any) -> Iterator[None]:
    """A context in which the head is not a submodule of the model, which is saved and loaded without it."""
    base = unwrapped(model)
    head = base._modules.pop(VALUE_HEAD, None)
    try:
        yield
    finally:
        if head is not None:
            base.add_module(VALUE_HEAD, head)


def save_value_head(head: nn.Module, directory: Path) -> None:
    """Write the head to a directory."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}, directory / _VALUE_HEAD_FILE)
    readable_by_umask(directory)


def load_value_head(head: nn.Module, directory: Path) -> None:
    """Read the head from a checkpoint.

    Raises:
        ConfigError: it is missing, or it belongs to another model.
    """
    try:
        head.load_state_dict(load_file(directory / _VALUE_HEAD_FILE))
    except (OSError, RuntimeError) as error:
        found = f"{directory} doesn't have a value head that fits: {one_line(error, 200)}"
        raise ConfigError(Problem("training.resume_from_checkpoint", found, do="Give a checkpoint of stage=ppo")) from error

"""The arguments of PPO's trainer: those of any trainer, and PPO's own.

PPO (Schulman et al. 2017) of a language model, on transformers' own training loop.

Where the Trainer fetches the batches of an optimizer step, a rollout is made if one is due: prompts are answered, answers scored, their
tokens' advantages estimated. Several steps then learn from it, each from a part. All that is left to the loop is left to it: accumulation,
clipping, schedule, checkpoints, callbacks, several processes.

Trunk, value head, reference and reward model are one model in memory where they can be: see `value_head`, `stages.answering.reference` and
`stages.rewards`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from trl.trainer.utils import disable_dropout_in_model

from llmmod.config.schema.online_training import PpoFields
from llmmod.trainers.means import Means
from llmmod.trainers.online.base import OnlineTrainer, RolloutSampler, columns, isolated_rng, seed_of
from llmmod.trainers.online.completions import score_completions
from llmmod.trainers.online.rewards import rewards_from
from llmmod.trainers.ppo.math import policy_losses, token_kl, value_losses
from llmmod.trainers.ppo.rollout import Rollout, RolloutCollector, in_parts, mini_batch
from llmmod.trainers.ppo.value_head import load_value_head, new_value_head, save_value_head, with_value_head, without_value_head
from llmmod.trainers.reference import initial_weights
from llmmod.upstream import require_upstream

require_upstream(__name__)

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


_PARTS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "value_clip_fraction")
_TOO_FAR = 1.5  # times target_kl, as in OpenAI's Spinning Up and Stable-Baselines3


class PpoTrainer(OnlineTrainer, Trainer):  # type: ignore[misc]
    """A trainer for datasets with the column `prompt_ids`; further columns are for reward functions."""

    stage = "ppo"
    panels = (
        ("reward", (("score", "score", "tab:green"), ("reward", "reward: score less what divergence costs", "tab:blue"))),
        ("KL to the reference, nats an answer", (("kl", "KL", "tab:red"),)),
    )
    loss_is_scaled_for_ga = True  # by the tokens of the whole optimizer step

    def __init__(
        self, model: Any = None, args: PpoArguments | None = None, *, train_dataset: Any = None, data_collator: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=train_dataset, data_collator=data_collator or columns, **kwargs)
        if self.args.disable_dropout:
            disable_dropout_in_model(self.model)
        self.value_head = new_value_head(self.model)
        run_dir = Path(self.args.output_dir).parent
        rows = self.args.per_device_train_batch_size
        self.rewards = rewards_from(
            self.args.reward, self.args.reward_weights, model=self.model, tokenizer=self.processing_class, run_dir=run_dir, rows=rows
        )
        self.collector = RolloutCollector(self)
        self.means = Means()
        self.rollout: Rollout | None = None
        self._parts = torch.zeros(len(_PARTS) + 1, dtype=torch.float64)

    @property
    def rows_a_step(self) -> int:
        """Answers of a process that an optimizer step learns from."""
        return int(self._train_batch_size * self.args.gradient_accumulation_steps)

    @property
    def steps_a_rollout(self) -> int:
        """Optimizer steps that learn from one rollout."""
        return int(self.args.num_mini_batches * self.args.num_ppo_epochs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; see the class."""
        self.initial = initial_weights(self.model)
        with with_value_head(self.model, self.value_head):
            return super().train(*args, **kwargs)

    def release(self) -> None:
        """Let go of what only training needs."""
        super().release()
        self.rollout = None

    # Prompts and rollouts

    def get_train_dataloader(self) -> Any:
        """Batches of a whole rollout's prompts, each as often as the loop takes a batch for it."""
        size = self.rows_a_step * self.args.num_mini_batches
        return self._get_dataloader(self.train_dataset, "Training", batch_size=size, sampler_fn=self._get_train_sampler, is_training=True)

    def _get_train_sampler(self, train_dataset: Any = None) -> RolloutSampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        size = self.rows_a_step * self.args.num_mini_batches * self.accelerator.num_processes
        return self.rollout_sampler(dataset, size=size, times=self.steps_a_rollout * self.args.gradient_accumulation_steps)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of the next optimizer step, and the number of tokens in them, of all processes."""
        prompts, *_ = (next(epoch_iterator) for _ in range(num_batches))  # all the same
        step = self.state.global_step
        number, place = divmod(step, self.steps_a_rollout)
        if place == 0 or self.rollout is None:
            with isolated_rng(seed_of("rollout", self.args.seed, step, self.args.process_index)):
                self.rollout = self.collector.collect(prompts)
        epoch, part = divmod(place, self.args.num_mini_batches)
        order = seed_of("order", self.data_seed, number, self.args.process_index)
        numbers = mini_batch(len(self.rollout.prompts), size=self.rows_a_step, number=part, epoch=epoch, seed=order)
        grouped = self.rollout.lengths() if self.args.train_sampling_strategy == "group_by_length" else None
        pad_id = self.collector.config.pad_token_id
        batches = [self.rollout.batch(part, pad_id=pad_id) for part in in_parts(numbers, self._train_batch_size, by_length=grouped)]
        tokens = self.accelerator.reduce(torch.tensor(float(self.rollout.tokens(numbers)), device=device))
        return batches, tokens

    # The loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """PPO's loss of a micro-batch: its tokens' sum over the number of tokens of the whole optimizer step."""
        args, mask = self.args, inputs["answer_mask"]
        now = score_completions(model, inputs, value_head=self.value_head, temperature=args.temperature)
        assert now.values is not None
        policy, clipped = policy_losses(now.log_probs, inputs["old_log_probs"], inputs["advantages"], cliprange=args.cliprange)
        value, near = value_losses(now.values, inputs["old_values"], inputs["returns"], cliprange_value=args.cliprange_value)
        loss = policy + args.vf_coef * value
        if args.entropy_coef:
            loss = loss - args.entropy_coef * now.entropy
        far = token_kl(inputs["old_log_probs"], now.log_probs, estimator="k3")
        numbers = torch.stack([number.detach()[mask].double().sum() for number in (policy, value, now.entropy, far, clipped, near)])
        self._parts += torch.cat([numbers, mask.sum()[None].double()]).cpu()
        tokens = mask.sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients of several processes are averaged.
        loss = (loss * mask).sum() / tokens * self.accelerator.num_processes
        return (loss, now) if return_outputs else loss

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of one micro-batch, its gradient accumulated; after the last of a step, what it amounts to is noted."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            *sums, tokens = self.accelerator.reduce(self._parts.to(self.args.device)).tolist()
            self._parts = torch.zeros_like(self._parts)
            found = {name: total / max(tokens, 1) for name, total in zip(_PARTS, sums, strict=True)}
            self.means.add(found)
            if self.args.target_kl is not None and found["approx_kl"] > _TOO_FAR * self.args.target_kl:
                self.rollout = None
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with what happened since the last line."""
        super().log(logs | self.means.take() if "loss" in logs else logs, start_time)

    # Held-out prompts

    def prediction_step(self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None) -> Any:
        """Nothing, an answer's numbers being added up for `evaluation_loop`."""
        found = self.collector.measure(inputs)
        # Gathered by prompt, so that what was added to fill the last batch of several processes is left out again.
        numbers = self.accelerator.gather_for_metrics(torch.stack(list(found.values()), dim=1).to(self.args.device)).cpu()
        self._held_out.add(dict(zip(found, numbers.mean(0).tolist(), strict=True)), len(numbers))
        self._earned.update(numbers[:, list(found).index("reward")])
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

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        state = self.collector.state() | {"means": self.means.state()}
        state["rollout"] = None if self.rollout is None else self.rollout.state()
        torch.save(state, self.state_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = torch.load(self.state_file(checkpoint), weights_only=True)
            self.rollout = None if state["rollout"] is None else Rollout.from_state(state["rollout"])
            self.means.load(state["means"])
            self.collector.load(state, step=self.state.global_step)

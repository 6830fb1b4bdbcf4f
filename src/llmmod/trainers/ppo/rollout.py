"""Rollouts: sample completions, score them, and estimate the advantage of each token.

The model runs in evaluation mode and without gradients. The tensors of a rollout are on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from llmmod.data.collators import padded
from llmmod.models.generation.generate import generate_in_order
from llmmod.models.generation.settings import Ends, answer_text
from llmmod.trainers.means import RunningMoments
from llmmod.trainers.online.base import sampling_settings
from llmmod.trainers.online.completions import PolicyOutputs, completion_rows, score_completions
from llmmod.trainers.online.rewards import Completions
from llmmod.trainers.ppo.math import (
    KlCoefficient,
    ScoreScale,
    advantages_and_returns,
    apply_missing_eos_penalty,
    explained_variance,
    masked_moments,
    token_kl,
    token_rewards,
    whitened,
)
from llmmod.trainers.reference import reference
from llmmod.upstream import require_upstream

require_upstream(__name__)


@dataclass
class Rollout:
    """Prompts and completions. Tensors are [completions, tokens of the longest], 0 after the end of a completion.

    Args:
        prompts: ids.
        completions: ids.
        mask: true for tokens, false for padding.
        logps: of the tokens when they were sampled.
        values: expected before each token.
        advantages: of the tokens.
        returns: the targets of the values.
    """

    prompts: list[list[int]]
    completions: torch.Tensor
    mask: torch.Tensor
    logps: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    def batch(self, numbers: Sequence[int], *, pad_id: int, left: bool = False) -> dict[str, torch.Tensor]:
        """The completions with these numbers, as the loss takes them."""
        mask = self.mask[numbers]
        width = max(1, int(mask.sum(1).max()))
        prompts, completions = [self.prompts[n] for n in numbers], self.completions[numbers, :width]
        return completion_rows(prompts, completions, mask[:, :width], pad_id=pad_id, left=left) | {
            "old_logps": self.logps[numbers, :width],
            "old_values": self.values[numbers, :width],
            "advantages": self.advantages[numbers, :width],
            "returns": self.returns[numbers, :width],
        }

    def tokens(self, numbers: Sequence[int]) -> int:
        """The number of tokens of these completions."""
        return int(self.mask[numbers].sum())

    def lengths(self) -> list[int]:
        """Tokens of each prompt with its completion."""
        return _lengths(self.prompts, self.mask)

    def state(self) -> dict[str, Any]:
        """The fields, for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Rollout:
        """The rollout of a checkpoint."""
        return cls(**state)


def _lengths(prompts: Sequence[Sequence[int]], mask: torch.Tensor) -> list[int]:
    return [len(prompt) + count for prompt, count in zip(prompts, mask.sum(1).tolist(), strict=True)]


def mini_batch(count: int, *, size: int, number: int, epoch: int, seed: int) -> list[int]:
    """The completions of an optimizer step: part `number` of a pass over the rollout, in an order that depends on the pass."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    return order[number * size : (number + 1) * size]


def in_parts(numbers: Sequence[int], size: int, *, by_length: Sequence[int] | None = None) -> Iterator[list[int]]:
    """The numbers, `size` at a time; with lengths, those of similar length together."""
    order = list(numbers) if by_length is None else sorted(numbers, key=lambda number: -by_length[number])
    for start in range(0, len(order), size):
        yield order[start : start + size]


class RolloutCollector:
    """Collects rollouts for a PpoTrainer, and keeps the state between rollouts: the scale of scores and the KL coefficient.

    Args:
        trainer: its model, value head, rewards and arguments are used.
    """

    def __init__(self, trainer: Any) -> None:
        args = trainer.args
        self._trainer, self._args = trainer, args
        self.config = sampling_settings(args, trainer.model)
        self._ends = Ends(self.config, trainer.processing_class)
        self.kl_coef = KlCoefficient(args.kl_coef, args.target, args.horizon)
        self.scale = ScoreScale(args.use_score_scaling, args.use_score_norm, args.score_clip)

    def collect(self, prompts: Mapping[str, Sequence[Any]]) -> Rollout:
        """A rollout; its metrics are added to the trainer's means.

        Args:
            prompts: the values of each column, `prompt_ids` among them.
        """
        args, gather = self._args, self._trainer.accelerator.gather
        ids, mask, lists = self._sample(prompts["prompt_ids"], first=args.process_index * len(prompts["prompt_ids"]))
        policy, ref = self._score(prompts["prompt_ids"], ids, mask)
        assert ref is not None, "during training, the reference is known"
        scores, texts = self._rewards(prompts, lists)
        ended = self._ended(prompts["prompt_ids"], lists)
        kl = torch.where(mask, token_kl(policy["logps"], ref["logps"], estimator=args.kl_estimator), 0.0)
        scaled = self.scale(scores, gather(scores.to(args.device)).cpu())
        rewards = token_rewards(apply_missing_eos_penalty(scaled, ended, args.missing_eos_penalty), kl, mask, kl_coef=self.kl_coef.value)
        total = rewards.sum(1)
        if args.whiten_rewards:
            rewards = whitened(rewards, mask, shift_mean=False, reduce=self.sum_of_processes)
        if self._trainer.state.global_step == 0:
            policy["values"] = self._initial_values(rewards, mask)
        advantages, returns = advantages_and_returns(rewards, policy["values"], mask, gamma=args.gamma, lam=args.lam)
        numbers = {"score": scores, "reward": total, "kl": kl.sum(1)}
        self._add_metrics(mask, policy["values"], returns, ended, **numbers)
        shown = [answer_text(p, self._trainer.processing_class, stop_ids=()) for p in prompts["prompt_ids"][: args.num_sample_answers]]
        lines = {name: values.tolist() for name, values in numbers.items()}
        self._trainer.samples.write(self._trainer.state.global_step, prompts=shown, completions=texts, **lines)
        if args.whiten_advantages:
            advantages = whitened(advantages, mask, reduce=self.sum_of_processes)
        prompt_ids = [list(prompt) for prompt in prompts["prompt_ids"]]
        return Rollout(prompt_ids, ids, mask, policy["logps"], policy["values"], advantages, returns)

    def _initial_values(self, rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Make the new value head predict the mean return of the first rollout for all tokens; its values, [completions, tokens].

        So a completion's advantage measures from the first step on how much better it is than the others. With zeros, the whole score
        would be an advantage, however good the completion is, and GAE would give most of it to the last tokens; a step of Adam moves the
        head by little more than the learning rate.
        """
        _, returns = advantages_and_returns(rewards, torch.zeros_like(rewards), mask, gamma=self._args.gamma, lam=1.0)
        mean, _ = masked_moments(returns, mask, self.sum_of_processes)
        with torch.no_grad():
            self._trainer.value_head.bias.fill_(mean.item())
        return torch.where(mask, mean.to(rewards), 0.0)

    def measure(self, prompts: Mapping[str, Sequence[Any]], *, first: int, count: int) -> dict[str, torch.Tensor]:
        """The metrics of held-out prompts, each [prompts], in the mean of `num_generations_eval` completions.

        `reward` is in the units of the score. If the reference is unknown, `kl` is left out, and `reward` doesn't include its penalty.

        Args:
            prompts: the values of each column, `prompt_ids` among them.
            first, count: from `next_held_out`.
        """
        args, times = self._args, self._args.num_generations_eval
        prompts = {name: [value for value in values for _ in range(times)] for name, values in prompts.items()}
        ids, mask, lists = self._sample(prompts["prompt_ids"], first=first * times)
        policy, ref = self._score(prompts["prompt_ids"], ids, mask, values=False)
        (scores, texts), ended = self._rewards(prompts, lists), self._ended(prompts["prompt_ids"], lists)
        answers = prompts.get("answer")
        self._trainer.measure_texts(texts[: count * times], None if answers is None else answers[: count * times])
        reward = apply_missing_eos_penalty(scores, ended, args.missing_eos_penalty)
        found = {"score": scores, "answer_length": mask.sum(1), "terminated": ended}
        if ref is not None:
            found["kl"] = torch.where(mask, policy["logps"] - ref["logps"], 0.0).sum(1)
            reward = reward - self.kl_coef.value * found["kl"]
        found["reward"] = reward
        return {name: numbers.double().reshape(-1, times).mean(1) for name, numbers in found.items()}

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"kl_coef": self.kl_coef.value, "moments": asdict(self.scale.moments)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from the state in a checkpoint."""
        self.kl_coef.value, self.scale.moments = state["kl_coef"], RunningMoments(**state["moments"])

    def _sample(self, prompts: Sequence[Sequence[int]], *, first: int) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
        """Sampled completions as ids and mask, [prompts, longest], and as lists."""
        model, tokenizer, size = self._trainer.model, self._trainer.processing_class, self._args.generation_batch_size
        model.eval()
        with self._trainer.accelerator.autocast():  # around the whole generation, so that weights of float32 are cast once
            lists = generate_in_order(model, prompts, config=self.config, batch_size=size, tokenizer=tokenizer, first=first)
        ids, mask = padded(lists, fill=0)
        return ids, mask.bool(), lists

    def _score(
        self, prompts: Sequence[Sequence[int]], ids: torch.Tensor, mask: torch.Tensor, *, values: bool = True
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
        """`logps` and `values`, [prompts, longest], of the policy and of the reference, which is None if unknown."""
        model, head = self._trainer.model, self._trainer.value_head if values else None

        def by_policy(batch: dict[str, torch.Tensor]) -> PolicyOutputs:
            return score_completions(model, batch, value_head=head, outputs=("log_probs",))

        def by_reference(batch: dict[str, torch.Tensor]) -> PolicyOutputs:
            return score_completions(model, batch, outputs=("log_probs",))

        policy = self._score_in_parts(prompts, ids, mask, by_policy)
        context = reference(model, self._trainer.initial)
        if context is None:
            return policy, None
        with context:
            return policy, self._score_in_parts(prompts, ids, mask, by_reference)

    def _score_in_parts(
        self, prompts: Sequence[Sequence[int]], ids: torch.Tensor, mask: torch.Tensor, scorer: Callable[..., PolicyOutputs]
    ) -> dict[str, torch.Tensor]:
        """Score one micro-batch at a time, completions of similar length together, which takes no more memory than training."""
        args, trainer = self._args, self._trainer
        found = {name: torch.zeros(mask.shape) for name in PolicyOutputs._fields}
        trainer.model.eval()
        for numbers in in_parts(range(len(prompts)), args.per_device_train_batch_size, by_length=_lengths(prompts, mask)):
            batch = completion_rows([prompts[n] for n in numbers], ids[numbers], mask[numbers], pad_id=self.config.pad_token_id)
            with torch.no_grad(), trainer.compute_loss_context_manager():
                outputs = scorer(trainer._prepare_inputs(batch))
            for name, values in outputs._asdict().items():
                if values is not None:
                    found[name][numbers] = values.float().cpu()
        return found

    def _rewards(self, prompts: Mapping[str, Sequence[Any]], lists: Sequence[Sequence[int]]) -> tuple[torch.Tensor, list[str]]:
        """The scores of completions, [completions], and their texts."""
        texts = [self._trainer.reader(ids) for ids in lists]
        return self._trainer.rewards(Completions(prompts["prompt_ids"], lists, prompts, texts)), texts

    def _ended(self, prompts: Sequence[Sequence[int]], lists: Sequence[Sequence[int]]) -> torch.Tensor:
        """Whether a completion has a terminator, bool [completions]."""
        return torch.tensor([self._ends.ended(prompt, ids) for prompt, ids in zip(prompts, lists, strict=True)])

    def sum_of_processes(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a CPU tensor of each process."""
        if self._trainer.accelerator.num_processes == 1:
            return value  # not moved: a device may not have float64
        summed: torch.Tensor = self._trainer.accelerator.reduce(value.to(self._args.device)).to(value.device)
        return summed

    def _add_metrics(
        self, mask: torch.Tensor, values: torch.Tensor, returns: torch.Tensor, ended: torch.Tensor, **numbers: torch.Tensor
    ) -> None:
        """Add the metrics of a rollout over all processes to the trainer's means, and adapt the KL coefficient."""
        lengths = mask.sum(1).float()
        sums = torch.stack([*numbers.values(), lengths, ended.float(), torch.ones_like(lengths)]).double().sum(1)
        *totals, count = self.sum_of_processes(sums).tolist()
        names = (*numbers, "answer_length", "terminated")
        metrics = {name: total / count for name, total in zip(names, totals, strict=True)}
        errors, spread = (masked_moments(each, mask, self.sum_of_processes)[1].item() for each in (returns - values, returns))
        metrics |= {"explained_variance": explained_variance(errors, spread), "kl_coef": self.kl_coef.value}
        self._trainer.means.add(metrics)
        self.kl_coef.update(metrics["kl"], int(count))

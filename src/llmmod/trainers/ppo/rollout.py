"""A rollout: prompts with sampled answers, and all that an update needs to know of them.

How rollouts come about: prompts are answered, answers scored, and each token told how much better it was than expected.

The model is asked in evaluation mode and without gradients; a rollout's tensors stay on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from llmmod.data.collators import padded
from llmmod.models.generation.generate import generate_in_order
from llmmod.models.generation.settings import Ends, answer_text
from llmmod.trainers.means import RunningMoments
from llmmod.trainers.online.base import sampling_settings
from llmmod.trainers.online.completions import Samples, rows_of, score_completions
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
from llmmod.trainers.ppo.value_head import set_constant
from llmmod.trainers.reference import reference
from llmmod.upstream import require_upstream

require_upstream(__name__)


@dataclass
class Rollout:
    """Prompts and answers, on the CPU. Tensors are [answers, tokens of the longest], 0 where a shorter answer has none.

    Args:
        prompts: ids.
        answers: ids.
        mask: which of them are tokens.
        log_probs: of the tokens, when they were sampled.
        values: expected before each token.
        advantages: of the tokens.
        returns: what the values should have been.
    """

    prompts: list[list[int]]
    answers: torch.Tensor
    mask: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    def batch(self, numbers: Sequence[int], *, pad_id: int, left: bool = False) -> dict[str, torch.Tensor]:
        """The answers of these numbers, as the loss takes them."""
        mask = self.mask[numbers]
        width = max(1, int(mask.sum(1).max()))
        batch = rows_of([self.prompts[n] for n in numbers], self.answers[numbers, :width], mask[:, :width], pad_id=pad_id, left=left)
        return batch | {
            "old_log_probs": self.log_probs[numbers, :width],
            "old_values": self.values[numbers, :width],
            "advantages": self.advantages[numbers, :width],
            "returns": self.returns[numbers, :width],
        }

    def tokens(self, numbers: Sequence[int]) -> int:
        """Tokens of these answers."""
        return int(self.mask[numbers].sum())

    def lengths(self) -> list[int]:
        """Tokens of each prompt with its answer."""
        return [len(prompt) + count for prompt, count in zip(self.prompts, self.mask.sum(1).tolist(), strict=True)]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Rollout:
        """The rollout that a checkpoint kept."""
        return cls(**state)


def mini_batch(count: int, *, size: int, number: int, epoch: int, seed: int) -> list[int]:
    """The answers that an optimizer step learns from: the `number`-th part of a pass over the rollout, in an order of the pass's own."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    return order[number * size : (number + 1) * size]


def in_parts(numbers: Sequence[int], size: int, *, by_length: Sequence[int] | None = None) -> Iterator[list[int]]:
    """The numbers, `size` at a time; those of like length together where lengths are given."""
    order = list(numbers) if by_length is None else sorted(numbers, key=lambda number: -by_length[number])
    for start in range(0, len(order), size):
        yield order[start : start + size]


class RolloutCollector:
    """Makes rollouts for a PpoTrainer, and remembers what lasts beyond one: how scores spread, and what divergence costs.

    Args:
        trainer: whose model, value head, rewards and arguments are used.
    """

    def __init__(self, trainer: Any) -> None:
        args = trainer.args
        self._trainer, self._args = trainer, args
        self.config = sampling_settings(args, trainer.model)
        self._ends = Ends(self.config, trainer.processing_class)
        self.kl_coef = KlCoefficient(args.kl_coef, args.target, args.horizon)
        self.scale = ScoreScale(args.use_score_scaling, args.use_score_norm, args.score_clip)
        self._samples = Samples(Path(args.output_dir), args.num_sample_answers if trainer.is_world_process_zero() else 0)

    def collect(self, prompts: Mapping[str, Sequence[Any]]) -> Rollout:
        """Answer, score and judge; what is found is added to the trainer's means.

        Args:
            prompts: each column's values, `prompt_ids` among them.
        """
        args, gather = self._args, self._trainer.accelerator.gather
        ids, mask, lists = self._answered(prompts["prompt_ids"])
        own, other = self._asked(prompts["prompt_ids"], ids, mask)
        assert own["values"] is not None
        assert other is not None, "while it trains, its reference is known"
        scores, texts = self._scored(prompts, lists)
        ended = self._ended(prompts["prompt_ids"], lists)
        kl = torch.where(mask, token_kl(own["log_probs"], other["log_probs"], estimator=args.kl_estimator), 0.0)
        earned = apply_missing_eos_penalty(self.scale(scores, gather(scores.to(args.device)).cpu()), ended, args.missing_eos_penalty)
        rewards = token_rewards(earned, kl, mask, kl_coef=self.kl_coef.value)
        total = rewards.sum(1)
        if args.whiten_rewards:
            rewards = whitened(rewards, mask, shift_mean=False, reduce=self._sum)
        if self._trainer.state.global_step == 0:
            own["values"] = self._first_values(rewards, mask)
        advantages, returns = advantages_and_returns(rewards, own["values"], mask, gamma=args.gamma, lam=args.lam)
        self._tell(mask, own, returns, ended, score=scores, reward=total, kl=kl.sum(1))
        self._show(prompts, texts, score=scores.tolist(), reward=total.tolist(), kl=kl.sum(1).tolist())
        if args.whiten_advantages:
            advantages = whitened(advantages, mask, reduce=self._sum)
        known = [list(prompt) for prompt in prompts["prompt_ids"]]
        return Rollout(known, ids, mask, own["log_probs"], own["values"], advantages, returns)

    def _first_values(self, rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the value head says of the first rollout, [answers, tokens], once it says what its tokens return in the mean."""
        _, returns = advantages_and_returns(rewards, torch.zeros_like(rewards), mask, gamma=self._args.gamma, lam=1.0)
        mean, _ = masked_moments(returns, mask, self._sum)
        set_constant(self._trainer.value_head, mean.item())
        return torch.where(mask, mean.to(rewards), 0.0)

    def measure(self, prompts: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """What answers to held-out prompts are worth, each [prompts], in the mean of `num_generations_eval` answers; `reward` is in the
        score's own units, and without `kl` where the reference isn't known.
        """
        times = self._args.num_generations_eval
        each = self._measured({name: [value for value in values for _ in range(times)] for name, values in prompts.items()})
        return {name: numbers.double().reshape(-1, times).mean(1) for name, numbers in each.items()}

    def _measured(self, prompts: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        args = self._args
        ids, mask, lists = self._answered(prompts["prompt_ids"])
        own, other = self._asked(prompts["prompt_ids"], ids, mask, values=False)
        (scores, texts), ended = self._scored(prompts, lists), self._ended(prompts["prompt_ids"], lists)
        self._trainer.measure_texts(texts, prompts.get("answer"))
        reward = apply_missing_eos_penalty(scores, ended, args.missing_eos_penalty)
        found = {"score": scores, "answer_length": mask.sum(1), "terminated": ended}
        if other is not None:
            found["kl"] = torch.where(mask, own["log_probs"] - other["log_probs"], 0.0).sum(1)
            reward = reward - self.kl_coef.value * found["kl"]
        return found | {"reward": reward}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"kl_coef": self.kl_coef.value, "moments": asdict(self.scale.moments)}

    def load(self, state: Mapping[str, Any], *, step: int) -> None:
        """Go on from a checkpoint of an optimizer step."""
        self.kl_coef.value, self.scale.moments = state["kl_coef"], RunningMoments(**state["moments"])
        self._samples.forget_after(step)

    def _answered(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
        """Sampled answers as ids and mask, [prompts, longest], and as lists."""
        model, tokenizer, size = self._trainer.model, self._trainer.processing_class, self._args.generation_batch_size
        model.eval()
        with self._trainer.accelerator.autocast():  # around all tokens: weights of float32 are cast once
            lists = generate_in_order(model, prompts, config=self.config, batch_size=size, tokenizer=tokenizer)
        ids, mask = padded(lists, fill=0)
        return ids, mask.bool(), lists

    def _asked(
        self, prompts: Sequence[Sequence[int]], ids: torch.Tensor, mask: torch.Tensor, *, values: bool = True
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
        """What the policy and the reference say of the answers: `log_probs`, `entropy`, and the policy's `values`, [prompts, longest]."""
        trainer = self._trainer
        head = trainer.value_head if values else None
        own = self._in_parts(
            prompts, ids, mask, lambda batch: score_completions(trainer.model, batch, value_head=head, temperature=self._args.temperature)
        )
        context = reference(trainer.model, trainer.initial)
        if context is None:
            return own, None
        with context:
            return own, self._in_parts(
                prompts, ids, mask, lambda batch: score_completions(trainer.model, batch, temperature=self._args.temperature)
            )

    def _in_parts(
        self, prompts: Sequence[Sequence[int]], ids: torch.Tensor, mask: torch.Tensor, ask: Callable[[dict[str, torch.Tensor]], Any]
    ) -> dict[str, torch.Tensor]:
        """A few answers at a time, those of like length together; no more is in memory than one micro-batch of training takes."""
        args, trainer = self._args, self._trainer
        found = {name: torch.zeros(mask.shape) for name in ("log_probs", "entropy", "values")}
        lengths = [len(prompt) + count for prompt, count in zip(prompts, mask.sum(1).tolist(), strict=True)]
        trainer.model.eval()
        for numbers in in_parts(range(len(prompts)), args.per_device_train_batch_size, by_length=lengths):
            batch = rows_of([prompts[n] for n in numbers], ids[numbers], mask[numbers], pad_id=self.config.pad_token_id)
            with torch.no_grad(), trainer.compute_loss_context_manager():
                said = ask(trainer._prepare_inputs(batch))
            for name, values in said._asdict().items():
                if values is not None:
                    found[name][numbers] = values.float().cpu()
        return found

    def _scored(self, prompts: Mapping[str, Sequence[Any]], lists: Sequence[Sequence[int]]) -> tuple[torch.Tensor, list[str]]:
        """What answers are worth, [answers], and their texts."""
        texts = [self._trainer.reader(answer) for answer in lists]
        return self._trainer.rewards(Completions(prompts["prompt_ids"], lists, prompts, texts)), texts

    def _ended(self, prompts: Sequence[Sequence[int]], lists: Sequence[Sequence[int]]) -> torch.Tensor:
        """Whether an answer came to its end, bool [answers]."""
        return torch.tensor([self._ends.ended(prompt, answer) for prompt, answer in zip(prompts, lists, strict=True)])

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = self._trainer.accelerator.reduce(value.to(self._args.device)).to(value.device)
        return summed

    def _tell(
        self, mask: torch.Tensor, own: Mapping[str, torch.Tensor], returns: torch.Tensor, ended: torch.Tensor, **of_answers: torch.Tensor
    ) -> None:
        """Note what a rollout came to, over all processes, and let the cost of divergence follow."""
        lengths = mask.sum(1).float()
        told_of = torch.stack([*of_answers.values(), lengths, ended.float(), torch.ones_like(lengths)]).double().sum(1)
        *sums, count = self._sum(told_of).tolist()
        names = (*of_answers, "answer_length", "terminated")
        numbers = {name: total / count for name, total in zip(names, sums, strict=True)}
        errors, spread = (masked_moments(values, mask, self._sum)[1].item() for values in (returns - own["values"], returns))
        numbers |= {"explained_variance": explained_variance(errors, spread), "kl_coef": self.kl_coef.value}
        self._trainer.means.add(numbers)
        self.kl_coef.update(numbers["kl"], int(count))

    def _show(self, prompts: Mapping[str, Sequence[Any]], said: Sequence[str], **numbers: Sequence[float]) -> None:
        tokenizer, shown = self._trainer.processing_class, self._args.num_sample_answers
        texts = [answer_text(ids, tokenizer, stop_ids=()) for ids in prompts["prompt_ids"][:shown]]
        self._samples.write(self._trainer.state.global_step, prompts=texts, answers=said, **numbers)

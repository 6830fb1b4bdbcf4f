"""`stage=grpo`: Group Relative Policy Optimization (Shao et al. 2024) with trl's losses and advantages, on our completions and rewards.

Several completions of each prompt are sampled and scored, and each is compared with the others of its prompt. trl computes the loss
(`loss_type`, `scale_rewards`, …). Our code provides the prompts' ids, sampling and stop conditions, rewards, the reference and
log-probabilities (`trainers.online`, `trainers.reference`).

Differences from trl's GRPOTrainer (1.16): rows are padded on the right, so that positions start with the prompt; the last prompts of an
epoch are not dropped, since the first ones fill up their batch; a resumed run gives the same bits; `eval_loss` is left out, since it is
meaningless for a policy that is compared with itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, send_to_device
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer

from llmmod.config.schema.training import GrpoFields, reward_nodes
from llmmod.errors import ConfigError, Problem
from llmmod.models.generation.generate import generate_in_order
from llmmod.models.generation.settings import Ends, answer_text
from llmmod.trainers.online.base import OnlineTrainer, RolloutSampler, columns, isolated_rng, sampling_settings, seed_of
from llmmod.trainers.online.completions import completion_rows, score_completions
from llmmod.trainers.online.rewards import Completions, rewards_from
from llmmod.trainers.reference import can_disable_adapter, initial_weights, reference
from llmmod.upstream import require_upstream

require_upstream(__name__)

_BEST = "reward"  # the metric for the best model
_REFERENCE = "reference"  # trl gets it instead of a reference model


@dataclass
class GrpoArguments(GrpoFields, GRPOConfig):  # type: ignore[misc]
    """The arguments of GrpoTrainer: trl's, and those of `GrpoFields`, which documents them."""

    def __post_init__(self) -> None:
        """The best model has the highest reward on held-out prompts, unless `metric_for_best_model` is set."""
        if self.load_best_model_at_end and getattr(self, "metric_for_best_model", None) is None:
            self.metric_for_best_model, self.greater_is_better = _BEST, True
        super().__post_init__()


class GrpoTrainer(OnlineTrainer, GRPOTrainer):  # type: ignore[misc]
    """trl.GRPOTrainer for datasets with the column `prompt_ids`; further columns are passed to reward functions."""

    stage = "grpo"
    panels = (
        ("reward", (("reward", "reward", "tab:blue"),)),
        ("tokens per completion", (("completions/mean_length", "length", "tab:green"),)),
        ("KL to the reference, nats a token", (("kl", "KL", "tab:red"),)),
    )

    def __init__(
        self, model: Any = None, args: GrpoArguments | None = None, *, train_dataset: Any = None, data_collator: Any = None, **kwargs: Any
    ) -> None:
        assert args is not None
        if data_collator is not None:
            raise ConfigError(Problem("training.collator", "set, but grpo makes its batches of completions itself", do="Leave it out"))
        self._sampling = sampling_settings(args, model)
        self._ends = Ends(self._sampling, kwargs.get("processing_class"))
        self._lists: list[list[int]] = []  # the completions sampled last, and whether each ended
        self._ended: list[bool] = []
        self._place: tuple[int, int] | None = None  # in an evaluation: see `next_held_out`
        names = list(reward_nodes(args.reward))
        with _without_reference(args):
            super().__init__(model=model, reward_funcs=[_unused_reward] * len(names), args=args, train_dataset=train_dataset, **kwargs)
        if self.aux_loss_enabled:
            found = f"{self.router_aux_loss_coef:g} in the model's config, and grpo doesn't use that loss"
            raise ConfigError(Problem("training.router_aux_loss_coef", found, do="Set it to 0"))
        self.eos_token_ids = list(self._sampling.eos_token_id)  # trl would add the tokenizer's
        self.reward_func_names = names
        self.reward_weights = torch.tensor([args.reward_weights.get(name, 1.0) for name in names])
        run_dir, rows = Path(args.output_dir).parent, args.per_device_train_batch_size
        self.rewards = rewards_from(
            args.reward, {}, model=self.model, tokenizer=self.processing_class, run_dir=run_dir, rows=rows, left_out=torch.nan
        )
        self._set_reference(known=can_disable_adapter(model))
        self._rows: Sequence[Mapping[str, Any]] = []

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; see the class."""
        self.initial = initial_weights(self.model) if self.args.beta else None
        self._set_reference(known=True)
        return super().train(*args, **kwargs)

    def release(self) -> None:
        """Free what only training needs."""
        super().release()
        self._buffered_inputs = None
        self._rows = []

    def _set_reference(self, *, known: bool) -> None:
        """Compare with the reference, unless it is unknown: that of whole weights from another training is."""
        self.beta = self.args.beta if known else 0.0
        self.ref_model = _REFERENCE if self.beta else None

    # Prompts

    def _get_train_sampler(self, train_dataset: Any = None) -> RolloutSampler:
        args, dataset = self.args, self.train_dataset if train_dataset is None else train_dataset
        size, times = args.generation_batch_size // self.num_generations, self.num_iterations * args.steps_per_generation
        return self.rollout_sampler(dataset, size=size, times=times, each=self.num_generations)

    def _prepare_inputs(self, inputs: Any) -> dict[str, torch.Tensor]:
        """A micro-batch; if it is the first of a rollout, completions for all of them are sampled and scored."""
        context: AbstractContextManager[None] = nullcontext()
        if self.model.training:
            context = isolated_rng(seed_of("rollout", self.args.seed, self._step))
        with context:
            found: dict[str, torch.Tensor] = super()._prepare_inputs(inputs)
        return found

    def _generate_and_score_completions(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        self._rows = inputs
        # trl gets texts, which it logs. It would take some other columns for images or an environment.
        texts = [answer_text(row["prompt_ids"], self.processing_class, stop_ids=()) for row in inputs]
        found: dict[str, torch.Tensor] = super()._generate_and_score_completions([{"prompt": text} for text in texts])
        if self._sampling.stop_strings:  # trl recognises ends by tokens only
            cut = gather(torch.tensor([not ended for ended in self._ended], device=self.accelerator.device)).float().mean()
            self._metrics["train" if self.model.training else "eval"]["completions/clipped_ratio"][-1] = cut.item()
        return found

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(row["prompt_ids"]) for row in self._rows], None, {}

    # Completions

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        """A completion of each prompt, sampled at once and without dropout."""
        with _evaluating(self.model), self.accelerator.autocast():  # around the whole generation, so that weights are cast once
            first = self.args.process_index * len(prompt_ids) if self.model.training or self._place is None else self._place[0]
            found = generate_in_order(self.model, prompt_ids, config=self._sampling, tokenizer=self.processing_class, first=first)
        self._lists = found
        self._ended = [self._ends.ended(prompt, answer) for prompt, answer in zip(prompt_ids, found, strict=True)]
        return found, None

    def _calculate_rewards(
        self, inputs: Any, prompts: list[str], completions: list[str], completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        """The score of each completion by each reward, of all processes, [completions, rewards]; NaN where a function returns None."""
        completions[:] = [self.reader(ids) for ids in completion_ids_list]  # in place, since trl logs this list
        scored = Completions([list(row["prompt_ids"]) for row in self._rows], completion_ids_list, columns(self._rows), completions)
        own = torch.stack([self.rewards.scorers[name](scored) for name in self.reward_func_names], dim=1)
        total = (own * self.reward_weights).nansum(1)
        if self.model.training:
            shown = {"reward": total.tolist()}
            if len(self.reward_func_names) > 1:
                shown |= {f"rewards/{name}": numbers for name, numbers in zip(self.reward_func_names, own.T.tolist(), strict=True)}
            self.samples.write(self.state.global_step, prompts=prompts, completions=completions, **shown)
        else:
            self._measured(completions, own, total, scored.columns.get("answer"))
        scores: torch.Tensor = gather(own.to(self.accelerator.device))
        return scores

    # Log-probabilities

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,  # [completions, prompt + completion], prompts padded on the left, completions on the right
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Log-probabilities of the completion tokens and, if `compute_entropy`, their entropies, each [completions, tokens]."""
        prompts, size = input_ids.shape[1] - logits_to_keep, batch_size or len(input_ids)
        scorer, context = model, nullcontext()  # type: tuple[Any, AbstractContextManager[None]]
        if model is _REFERENCE:
            found_reference = reference(self.model, self.initial)
            assert found_reference is not None, "without a reference, beta is 0"
            scorer, context = self.model, found_reference
        outputs = ("log_probs", "entropy") if compute_entropy else ("log_probs",)
        asked: dict[str, Any] = {"outputs": outputs, "entropy_gradient": self._entropy_bonus_enabled}
        found = []
        with context, self.accelerator.autocast():
            for ids, mask in zip(*(torch.split(part, size) for part in (input_ids, attention_mask.bool())), strict=True):
                unpadded = [row[of_row].tolist() for row, of_row in zip(ids[:, :prompts], mask[:, :prompts], strict=True)]
                batch = completion_rows(unpadded, ids[:, prompts:].cpu(), mask[:, prompts:].cpu(), pad_id=self._sampling.pad_token_id)
                found.append(score_completions(scorer, Trainer._prepare_inputs(self, batch), **asked))
        logps = torch.cat([part.logps for part in found])
        return logps, torch.cat([part.entropy for part in found]) if compute_entropy else None, None

    def _track_num_input_tokens(self, inputs: Any) -> None:
        pass  # trl counts prompts and completions when they are sampled

    # Held-out prompts

    @property
    def completions_each(self) -> int:  # type: ignore[override]
        """Completions of each held-out prompt."""
        return int(self.num_generations_eval)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None) -> Any:
        """Add a batch to the means of `evaluation_loop`."""
        self._place = self.next_held_out(len(inputs))
        batch = self._prepare_inputs(inputs)  # calls `_measured`
        ids, mask = (torch.cat([batch[f"prompt_{part}"], batch[f"completion_{part}"]], dim=1) for part in ("ids", "mask"))
        rows, width = batch["completion_ids"].shape
        with torch.no_grad(), self.compute_loss_context_manager():
            logps, entropies, _ = self._get_per_token_logps_and_entropies(model, ids, mask, width, batch_size=rows, compute_entropy=True)
        tokens = batch["completion_mask"][: self._place[1]].cpu().double()
        of_tokens = {"entropy": entropies}
        if self.beta:
            apart = batch["ref_per_token_logps"] - logps
            of_tokens["kl"] = torch.exp(apart) - apart - 1
        for name, values in of_tokens.items():
            assert values is not None
            self._held_out.add({name: float((values[: len(tokens)].cpu() * tokens).sum() / tokens.sum().clamp(min=1))}, float(tokens.sum()))
        self._metrics["eval"].clear()
        self._place = None
        return None, None, None

    def _measured(self, texts: list[str], scores: torch.Tensor, totals: torch.Tensor, answers: Sequence[Any] | None) -> None:
        """Add the scores, lengths and texts of a batch of held-out completions, but not those of rows that fill it up.

        Args:
            texts: the completions.
            scores: by each reward, [completions, rewards]; NaN where a function returned None.
            totals: weighted sums of the scores, [completions].
            answers: those of the rows, if they have any.
        """
        count = len(texts) if self._place is None else self._place[1]
        self.measure_texts(texts[:count], None if answers is None else answers[:count])
        for name, column in zip(self.reward_func_names, scores[:count].double().T, strict=True):
            known = column[~column.isnan()]
            self._held_out.add({f"rewards/{name}/mean": float(known.mean())} if len(known) else {}, float(len(known)))
        lengths = torch.tensor([len(ids) for ids in self._lists[:count]], dtype=torch.float64)
        cut = torch.tensor([not ended for ended in self._ended[:count]], dtype=torch.float64)
        columns_of = {"reward": totals[:count].double(), "completions/mean_length": lengths, "completions/clipped_ratio": cut}
        self._held_out.add({name: float(values.mean()) for name, values in columns_of.items()} if count else {}, float(count))
        by_prompt = totals.reshape(-1, self.num_generations_eval).mean(1)
        counted = torch.arange(len(by_prompt)) < count // self.num_generations_eval
        both = gather(torch.stack([by_prompt, counted.to(by_prompt)], dim=1).to(self.accelerator.device)).cpu()
        self._rewards_so_far.update(both[both[:, 1] > 0, 0])

    # Checkpoints

    def training_state(self) -> dict[str, Any]:
        """See `ResumableTrainer`; with the completions that the next steps learn from."""
        of_entropy = {"last_world_entropy": self._last_world_entropy, "window": self._entropy_window_stats}
        return super().training_state() | {"step": self._step, "batches": self._buffered_inputs, "entropy": of_entropy}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `ResumableTrainer`."""
        super().load_training_state(state)
        self._step, self._buffered_inputs = state["step"], send_to_device(state["batches"], self.args.device)
        of_entropy = send_to_device(state["entropy"], self.args.device)
        self._last_world_entropy, self._entropy_window_stats = of_entropy["last_world_entropy"], of_entropy["window"]


def _unused_reward(**given: Any) -> list[float]:
    """trl requires a reward function; it is never called, since `_calculate_rewards` uses our rewards."""
    raise AssertionError("GrpoTrainer._calculate_rewards computes rewards")


@contextmanager
def _without_reference(args: GrpoArguments) -> Iterator[None]:
    """A context in which trl doesn't create a reference model, and doesn't read reward weights by name."""
    beta, weights = args.beta, args.reward_weights
    args.beta, args.reward_weights = 0.0, None  # type: ignore[assignment]
    try:
        yield
    finally:
        args.beta, args.reward_weights = beta, weights


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """A context in which a model is in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)

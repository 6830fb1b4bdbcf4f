"""What our trainers share, whatever they train: put before the library's class, `class SftTrainer(StageTrainer, trl.SFTTrainer)`.

Each step's loss and gradient are looked at before they are applied; evaluating changes nothing about training; a checkpoint holds what is
needed to go on and to load the model, and nothing else; nobody is told about the run.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import SequentialSampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from llmmod.data.lengths import lengths
from llmmod.models.segments import BOUNDARIES, by_segments
from llmmod.paths import readable_by_umask
from llmmod.stages.lean.lora import lean_lora
from llmmod.stages.loop.finite import not_finite
from llmmod.stages.loraplus import loraplus_optimizer
from llmmod.stages.neftune import noisy_embeddings
from llmmod.stages.sampling import ByEpoch

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

# PEFT writes an empty model card beside an adapter; transformers pickles the arguments, which .hydra/config.yaml has as text.
_LITTER = ("README.md", "training_args.bin")


class StageTrainer(_Trainer):  # type: ignore[misc]
    """A mixin for trainers that derive from transformers.Trainer."""

    optimizer: Any
    # How much faster an adapter's matrices B learn than its matrices A; None: all alike.
    loraplus_lr_ratio: float | None = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer that `training.optim` names, with LoRA+'s learning rates where they are asked for."""
        if self.optimizer is None and self.loraplus_lr_ratio is not None:
            cls, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = loraplus_optimizer(self.model, self.loraplus_lr_ratio, cls=cls, arguments=arguments, args=self.args)
        return super().create_optimizer(model)  # type: ignore[no-any-return]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; see the class."""
        self.neftune_noise_alpha = None  # the library's own hook; ours is in `training_step`
        return super().train(*args, **kwargs)

    def release(self) -> None:
        """Let go of what only training needs; nothing here."""

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of one batch, its gradient accumulated.

        Raises:
            RunError: if the loss is NaN or infinite; the weights are then still those of the step before.
        """
        with lean_lora(), noisy_embeddings(self.model, inputs, alpha=self.args.neftune_noise_alpha), by_segments(self.model, inputs):
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss).all():
            raise not_finite("the loss", float(loss), step=self.state.global_step + 1, args=self.args)
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "group_by_length" and hasattr(dataset, "__len__"):
            # transformers 5.23 would read every example to count its tokens.
            sampler = LengthGroupedSampler(self.args.train_batch_size * self.args.gradient_accumulation_steps, lengths=lengths(dataset))
        else:
            sampler = super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return ByEpoch(sampler, seed) if isinstance(sampler, LengthGroupedSampler) else sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In their order, by length or not: transformers 5.23 would group held-out examples too, by `input_ids`, which pairs don't have."""
        if self.args.train_sampling_strategy == "group_by_length":
            return SequentialSampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        # Without an attention mask, transformers 5.23 takes every pad token for padding; here that may be the eos that ends an answer.
        if BOUNDARIES in inputs:
            inputs = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
        super()._track_num_input_tokens(inputs)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        # A finite loss can have a gradient that is not. With fp16 that is normal: the scaler leaves the step out and tries a smaller scale.
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not self.args.fp16 and not math.isfinite(norm):
            raise not_finite("the gradient's norm", float(norm), step=self.state.global_step + 1, args=self.args)
        return norm

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The metrics of an evaluation, which leaves the random numbers of training as they were.

        The data loader draws one (torch 2.13, `_BaseDataLoaderIter`), so that how often is evaluated would change what dropout drops; and
        a run resumed from a checkpoint written just before an evaluation would not give the bits of the uninterrupted one.
        """
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A checkpoint holds weights that are tied once, and loading the one loads the other.
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with warnings.catch_warnings():
            # peft asks the base model's own directory whether the vocabulary grew, and a model read from GGUF has none.
            warnings.filterwarnings("ignore", message="Could not find a config file in")
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            for name in _LITTER:
                (Path(output_dir or self.args.output_dir) / name).unlink(missing_ok=True)
            readable_by_umask(Path(output_dir or self.args.output_dir))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: trl would write a card of its own into the output directory with each checkpoint; the export step writes ours."""

    def _send_telemetry(self) -> None:
        """Nothing: trl 1.16 would report model, device and data source to its makers."""

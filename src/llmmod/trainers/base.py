"""`StageTrainer`, the mixin of all our trainers, put before the library's class: `class SftTrainer(StageTrainer, trl.SFTTrainer)`.

It checks each step's loss and gradient before they are applied, keeps evaluation from changing the course of training, and writes
checkpoints with only the files that resuming and loading need. It does not send telemetry. This module also has the order of examples in an
epoch, LoRA+ and NEFTune.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from peft.optimizers import create_loraplus_optimizer
from torch.utils.data import Sampler, SequentialSampler
from transformers import TrainerCallback
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_pt_utils import LengthGroupedSampler

from llmmod.data.dataset.packing import lengths
from llmmod.errors import ConfigError, Problem, did_you_mean
from llmmod.files.paths import readable_by_umask
from llmmod.models.attention.varlen import BOUNDARIES, KEYS
from llmmod.models.loading.structure import base_model
from llmmod.models.packing import packed_attention
from llmmod.trainers.callbacks.interrupt import logged_name, not_finite
from llmmod.trainers.checkpoints import ResumableTrainer
from llmmod.trainers.distributed import shared_dataloader, without_placeholder
from llmmod.trainers.efficient import efficient_lora, efficient_mlps
from llmmod.upstream import require_upstream

require_upstream(__name__)

LORAPLUS_KEY = "finetune.loraplus_lr_ratio"
_OWN_GROUPS = ("params", "model", "optimizer_dict")  # arguments of optimizers that group the parameters themselves
# peft writes an empty model card beside an adapter; transformers pickles the arguments, which .hydra/config.yaml has as text.
_UNWANTED_FILES = ("README.md", "training_args.bin")


class StageTrainer(ResumableTrainer):
    """A mixin for trainers that derive from transformers.Trainer."""

    optimizer: Any
    control: Any
    loraplus_lr_ratio: float | None = None  # learning rate of matrices B relative to A; None: the same. Set by `trainers.build`
    # Whether the last batches of an epoch are divided among the processes as they are; False: the sampler fills them up.
    shares_last_batch = True
    # Decodes the completions that the model writes while it trains. Set by `trainers.build`.
    reader: Any = None
    # Answers held-out prompts every `predict_steps`: (model, file for the answers, callback for each) -> metrics. Set by the train step.
    answer_held_out: Callable[[Any, Path, Callable[[], None]], dict[str, float]] | None = None
    predict_steps = 1
    _answered: tuple[int, dict[str, float]] | None = None  # the step of the last answers, and their metrics

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer that `training.optim` names, with LoRA+'s learning rates if they are configured."""
        if self.optimizer is None and self.loraplus_lr_ratio is not None:
            cls, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = loraplus_optimizer(self.model, self.loraplus_lr_ratio, cls=cls, arguments=arguments, args=self.args)
        return super().create_optimizer(model)  # type: ignore[no-any-return]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; see the class."""
        self.neftune_noise_alpha = None  # switches the library's hook off; ours is in `training_step`
        return super().train(*args, **kwargs)

    def release(self) -> None:
        """Free what only training needs; nothing here."""

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of one batch; its gradient is accumulated.

        Raises:
            RunError: the loss is NaN or infinite; the weights are then still those of the step before.
        """
        noise = noisy_embeddings(self.model, inputs, alpha=self.args.neftune_noise_alpha)
        with efficient_lora(), efficient_mlps(self.model), noise, without_placeholder(self, inputs), packed_attention(self.model, inputs):
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss).all():
            raise not_finite("the loss", float(loss), step=self.state.global_step + 1, args=self.args)
        return loss

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        make = partial(super()._get_dataloader, is_training=is_training, **kwargs)
        return shared_dataloader(self, dataset, make, *args) if is_training and self.shares_last_batch else make(dataset, *args)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "group_by_length" and hasattr(dataset, "__len__"):
            # transformers 5.23 would read every example to count its tokens.
            sampler = LengthGroupedSampler(self.args.train_batch_size * self.args.gradient_accumulation_steps, lengths=lengths(dataset))
        else:
            sampler = super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochSeededSampler(sampler, seed) if isinstance(sampler, LengthGroupedSampler) else sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In order. transformers 5.23 would group held-out examples by the length of `input_ids` too, and pairs don't have that column."""
        if self.args.train_sampling_strategy == "group_by_length":
            return SequentialSampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        # Without an attention mask, transformers 5.23 counts every pad token as padding; here it may be the eos that ends an answer.
        if BOUNDARIES in inputs:
            inputs = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
        super()._track_num_input_tokens(inputs)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        # A finite loss can have an infinite gradient. With fp16 that is normal: the scaler skips the step and tries a smaller scale.
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not self.args.fp16 and not math.isfinite(norm):
            raise not_finite("the gradient's norm", float(norm), step=self.state.global_step + 1, args=self.args)
        return norm

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The metrics of an evaluation. The random state of training stays as it was.

        The data loader draws a random number (torch 2.13, `_BaseDataLoaderIter`). Otherwise the number of evaluations would change what
        dropout drops, and a run resumed from a checkpoint written before an evaluation would differ from the uninterrupted run.
        """
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The library's evaluation, with the metrics of the model's answers."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update(self.answer_metrics(metric_key_prefix))
        return output

    def answer_metrics(self, prefix: str) -> dict[str, float]:
        """The metrics of the model's answers to held-out prompts, `<prefix>_predict_…`; empty if they are not due at this step.

        The random numbers of sampled answers are the same each time; `evaluate` keeps those of training.
        """
        step = self.state.global_step
        if self.answer_held_out is None or (self.is_in_train and step % self.predict_steps):
            return {}
        if self._answered is None or self._answered[0] != step or not self.is_in_train:
            torch.manual_seed(self.args.seed)
            path = Path(self.args.output_dir) / "predictions" / f"step-{step}.jsonl"
            found: list[Any] = [None]
            if self.is_world_process_zero():
                path.parent.mkdir(parents=True, exist_ok=True)
                found = [self.answer_held_out(self.model, path, self._after_answer)]
            if self.args.world_size > 1:
                broadcast_object_list(found)
            self._answered = step, found[0]
        return {f"{prefix}_predict_{name}": value for name, value in self._answered[1].items()}

    def _after_answer(self) -> None:
        """Show progress, and let a signal end an evaluation between two answers."""
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # trl adds some of its metrics only to the log.
        wanted, metrics = self.args.metric_for_best_model, {**(self.state.log_history or [{}])[-1], **metrics}
        if wanted is not None and (name := logged_name(wanted)) not in metrics:
            if name.startswith("eval_predict_") and self.answer_held_out is not None and self.state.global_step % self.predict_steps:
                return False  # the prompts were not answered at this step
            measured = [known.removeprefix("eval_") for known in metrics if known.startswith("eval_")]
            found = f"{wanted}, which the evaluations don't measure"
            raise ConfigError(Problem("training.metric_for_best_model", found, did_you_mean(wanted.removeprefix("eval_"), measured)))
        return bool(super()._determine_best_metric(metrics, trial))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A checkpoint holds tied weights once, and loading one of them loads the other.
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with warnings.catch_warnings():
            # peft looks in the base model's directory whether the vocabulary grew, and a model read from GGUF doesn't have one.
            warnings.filterwarnings("ignore", message="Could not find a config file in")
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            for name in _UNWANTED_FILES:
                (Path(output_dir or self.args.output_dir) / name).unlink(missing_ok=True)
            readable_by_umask(Path(output_dir or self.args.output_dir))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: trl would write its own card with each checkpoint; the export step writes ours."""

    def _send_telemetry(self) -> None:
        """Nothing: trl 1.16 would report model, device and data source to its makers."""


class EvaluateEvery(TrainerCallback):  # type: ignore[misc]
    """Makes the trainer evaluate every `steps` optimizer steps, in addition to the evaluations of `training.eval_strategy`."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request an evaluation if one is due."""
        control.should_evaluate |= state.global_step % self._steps == 0


class EpochSeededSampler(Sampler[int]):
    """The order of another sampler, which depends on the seed and the epoch's number only.

    transformers' LengthGroupedSampler (5.23) draws from the random numbers that training uses. A run resumed within an epoch would see
    that epoch in another order: some examples twice, others never. accelerate does the same for a RandomSampler.

    Args:
        sampler: has a `generator` and a length.
        seed: of the order.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self._sampler, self._seed, self._epoch = sampler, seed, 0
        sampler.generator = torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch; accelerate's data loaders call it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator.manual_seed(self._seed + self._epoch)
        return iter(self._sampler)


def loraplus_optimizer(model: Any, ratio: float, *, cls: Any, arguments: dict[str, Any], args: Any) -> torch.optim.Optimizer:
    """LoRA+ (Hayou et al. 2024): the learning rate is `training.learning_rate` for the matrices A, and `ratio` times that for B.

    peft groups the parameters: `finetune.modules_to_save` gets the rate of A, vectors (biases, DoRA's magnitudes) that of B.

    Args:
        model: a PeftModel.
        ratio: 1 or more.
        cls, arguments: from `Trainer.get_optimizer_cls_and_kwargs`.
        args: the trainer's arguments.

    Raises:
        ConfigError: the optimizer of `training.optim` groups the parameters itself.
    """
    if is_optimizer_factory(cls) or any(name in arguments for name in _OWN_GROUPS):
        found = f"{ratio:g}, but training.optim={args.optim} divides the parameters in a way of its own"
        raise ConfigError(Problem(LORAPLUS_KEY, found, do="Use training.optim=adamw_torch"))
    given = {name: value for name, value in arguments.items() if name != "lr"}
    return create_loraplus_optimizer(  # type: ignore[no-any-return]
        model, cls, lr=args.learning_rate, loraplus_lr_ratio=ratio, loraplus_weight_decay=args.weight_decay, **given
    )


@contextmanager
def noisy_embeddings(model: Any, inputs: Mapping[str, torch.Tensor], *, alpha: float | None) -> Iterator[None]:
    """NEFTune (Jain et al. 2023): within it, embeddings get uniform noise within alpha / sqrt(L d) where a gradient is computed.

    L is the number of tokens of the example, as in the paper's code (github.com/neelsjain/NEFTune). transformers' hook (5.23) takes the
    width of the padded batch: an example's noise would depend on the other examples of its batch, and a row of several examples would
    have the noise of one long example.

    Args:
        model: a PreTrainedModel or PeftModel.
        inputs: a batch; `attention_mask` marks its padding, `cu_seq_lens_q` the examples within a row.
        alpha: `training.neftune_noise_alpha`; None: the model is not changed.
    """
    if alpha is None:
        yield
        return
    base = base_model(model)
    tokens = sequence_lengths(inputs)
    scale = alpha * (tokens * base.get_input_embeddings().weight.shape[-1]).clamp(min=1).rsqrt()
    scale = torch.where(tokens > 0, scale, 0.0)

    def add_noise(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training or not torch.is_grad_enabled():
            return output  # a forward pass of the reference, or of kto's mismatched pairs
        return output + torch.empty_like(output).uniform_(-1, 1) * scale.to(output)[..., None]

    hook = base.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        hook.remove()


def sequence_lengths(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """For each token of a batch, the number of tokens of its example, 0 for padding; int64 [batch, seq]."""
    ids = inputs["input_ids"]
    if BOUNDARIES in inputs:
        counts = inputs.get(KEYS, inputs[BOUNDARIES]).diff().long()
        return counts.repeat_interleave(inputs[BOUNDARIES].diff().long(), output_size=ids.shape[1])[None].expand(ids.shape)
    mask = inputs.get("attention_mask")
    if mask is None:
        return torch.full(ids.shape, ids.shape[1], device=ids.device)
    return mask.sum(1, keepdim=True) * mask

"""What trainers share that compare a model with the one it was before training, the reference: put between StageTrainer and trl's class.

What the reference thinks of an example, its log-probabilities, comes to trl's loss with the batch, whichever way it was had:

- with an adapter, from the same model with the adapter off; there is no second one;
- with whole weights, from a frozen copy, which shares the layers that aren't trained;
- from before training, computed once for all examples and kept in the run's directory (`training.precompute_ref_log_probs`). So it is
  always with an adapter that is something from the start: off, it isn't where training began.

trl's own means over a batch are weighted here by what they are over, so that those over many batches are exact; in evaluation over those
of several processes too, each of which measures its own share.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from llmmod.errors import ConfigError, Problem
from llmmod.models.packing.segments import packed_attention
from llmmod.trainers.base import StageTrainer
from llmmod.trainers.build import spans_devices
from llmmod.trainers.callbacks.progress import counting
from llmmod.trainers.efficient import efficient_head
from llmmod.trainers.means import Means, RowWeights, without_weights
from llmmod.trainers.reference import (
    DatasetWithColumns,
    NoReferenceModel,
    adapter_is_noop,
    examples_digest,
    frozen_copy,
    load_reference_logps,
    reference_logps_file,
    save_reference_logps,
)
from llmmod.upstream import require_upstream

require_upstream(__name__)

log = logging.getLogger("llmmod.train")


class ReferenceTrainer(StageTrainer):
    """A mixin; a class that has it says what of a batch is the reference's, and gives trl what its loss reads.

    Args:
        model: a PreTrainedModel or PeftModel.
        args: trl's.
        train_dataset, eval_dataset: the same object where nothing is to be trained.
        kwargs: as of the trl trainer's own.
    """

    columns: tuple[str, ...]  # what `compute_ref_log_probs` returns, by its name in a batch
    loss_is_scaled_for_ga = True

    def __init__(self, model: Any, args: Any, *, train_dataset: Any, eval_dataset: Any = None, **kwargs: Any) -> None:
        self._adapter = hasattr(model, "peft_config")
        self._off_is_start = self._adapter and adapter_is_noop(model)
        copied = not self._adapter and not args.precompute_ref_log_probs and train_dataset is not eval_dataset
        nobody = NoReferenceModel(model.config)
        super().__init__(
            model=model,
            ref_model=_copied(model, args) if copied else nobody,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        if not copied:
            self.ref_model = None
            self.accelerator._models.remove(nobody)
        self.precompute_ref_logps = True  # trl's word for: the batch has the reference's log-probabilities
        self._known: dict[int, DatasetWithColumns] = {}
        self._means = {"train": Means(), "eval": Means()}
        self.weights = RowWeights(train_dataset)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train; what the reference thinks is worked out before, where it can't be on the way."""
        if self.args.precompute_ref_log_probs or not (self._off_is_start or self.ref_model is not None):
            before = [Path(resume_from_checkpoint).parent] if resume_from_checkpoint else []
            for name, dataset in (("train", self.train_dataset), ("eval", self.eval_dataset)):
                if dataset is not None:
                    self._known[id(dataset)] = DatasetWithColumns(dataset, self._of_all(dataset, name, before))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def with_reference(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch with what the reference thinks of it.

        Raises:
            ConfigError: whole weights are evaluated that weren't trained by this trainer.
        """
        if self.columns[0] in inputs:
            return inputs
        if self.ref_model is None and not self._adapter:
            found = "evaluate, and there is no model to compare these whole weights with"
            raise ConfigError(Problem("pipeline", found, do="Put train before it, whose evaluation knows it, or evaluate an adapter"))
        return inputs | self._thoughts(inputs)

    def _thoughts(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The reference's log-probabilities, each [examples]."""
        reference, inputs = self.model if self.ref_model is None else self.ref_model, without_weights(inputs)
        with efficient_head(only=("log_probs",)), packed_attention(reference, inputs):
            found = self.compute_ref_log_probs(self.model_for_trl(reference, inputs), self.batch_for_trl(inputs))
        return {name: values for name, values in zip(self.columns, found, strict=True) if values is not None}

    def model_for_trl(self, model: Any, inputs: dict[str, Any]) -> Any:
        """What stands for the model where trl calls it with a batch that it reads."""
        return model

    def batch_for_trl(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch under the names that trl's loss knows."""
        return inputs

    def add_means(self, weight: float, *, weights: dict[str, float], **more: float) -> None:
        """Take trl's means of the batch that its loss has just seen; see `Means.add`.

        Args:
            weight, weights: as there.
            more: further means of the batch, by name.
        """
        mode = "train" if self.model.training else "eval"
        found = self._metrics[mode]
        tokens = found.pop("num_tokens", None)
        self._means[mode].add({name: values[-1] for name, values in found.items()} | more, weight, weights=weights)
        found.clear()
        if tokens and mode == "train":
            found["num_tokens"] = tokens

    def take_means(self) -> dict[str, float]:
        """The means over an evaluation, of all processes."""
        means = self._means["eval"]
        means.load(*gather_object([means.state()]))
        return means.take()

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Nothing, a batch's means being kept for `evaluation_loop`."""
        with packed_attention(self.model, inputs), alone(self.accelerator):
            super().prediction_step(model, inputs, True)
        return None, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the library's, with the loss and all that trl measures, under its names, over all examples."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in self.take_means().items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the exact means of what came since the last time."""
        mode = "train" if self.model.training else "eval"
        self._metrics[mode].update({name: [value] for name, value in self._means[mode].take().items()})
        super().log(logs, start_time)

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        even = self.accelerator.even_batches
        # Filled up to as many batches as another process has, an evaluation would measure examples twice. Sharded weights need it so.
        self.accelerator.even_batches = even and (is_training or self.is_fsdp_enabled or self.is_deepspeed_enabled)
        try:
            return super()._get_dataloader(self._known.get(id(dataset), dataset), *args, is_training=is_training, **kwargs)
        finally:
            self.accelerator.even_batches = even

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # is tokenized already

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # not yet: `train` does

    def _of_all(self, dataset: Any, name: str, before: list[Path]) -> dict[str, NDArray[np.float32]]:
        """What the reference thinks of each example: as an earlier part of this training found, or anew.

        Raises:
            ConfigError: nobody knows how many examples there are.
        """
        if not isinstance(dataset, Dataset):
            found = "true, but a streamed dataset has no end"
            raise ConfigError(Problem("training.precompute_ref_log_probs", found, do="Set it to false"))
        kept, key = self.ref_model, examples_digest(dataset)
        if self._adapter and not self._off_is_start:
            self.ref_model = self.model  # training has not begun, so it is the reference itself
        try:
            with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
                batches = self._batches(dataset)
                first = self._numbers(next(iter(batches)))
                for directory in (Path(self.args.output_dir), *before):
                    if (known := load_reference_logps(directory / reference_logps_file(name), digest=key, first=first)) is not None:
                        log.info("the reference's log-probabilities are those of %s", directory / reference_logps_file(name))
                        return known
                known = self._computed(batches, name, count=len(dataset))
        finally:
            self.ref_model = kept
        if self.args.should_save:
            save_reference_logps(Path(self.args.output_dir) / reference_logps_file(name), known, digest=key)
        return known

    def _batches(self, dataset: Dataset) -> Any:
        size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
        return self.accelerator.prepare(DataLoader(dataset, batch_size=size, collate_fn=self.data_collator))  # type: ignore[arg-type]

    def _computed(self, batches: Any, name: str, *, count: int) -> dict[str, NDArray[np.float32]]:
        parts: dict[str, list[NDArray[np.float32]]] = {}
        with counting(f"reference of {name}", count, bar=None) as told:
            for batch in batches:
                for column, values in self._numbers(batch).items():
                    parts.setdefault(column, []).append(values)
                told(len(values))
        return {column: np.concatenate(found) for column, found in parts.items()}

    def _numbers(self, batch: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
        """What the reference thinks of a batch, of all processes."""
        self.model.eval()
        found = self._thoughts(self._prepare_inputs(batch))
        return {name: self.accelerator.gather_for_metrics(values).float().cpu().numpy() for name, values in found.items()}


@contextmanager
def alone(accelerator: Any) -> Iterator[None]:
    """Within it, trl's loss measures the batch of its own process alone: the last batches needn't be as many in all of them."""
    before = {name: vars(accelerator)[name] for name in _GATHERS if name in vars(accelerator)}
    vars(accelerator).update(dict.fromkeys(_GATHERS, lambda values, *args, **kwargs: values))
    try:
        yield
    finally:
        for name in _GATHERS:
            del vars(accelerator)[name]
        vars(accelerator).update(before)


_GATHERS = ("gather", "gather_for_metrics")


def _copied(model: Any, args: Any) -> Any:
    """A frozen copy.

    Raises:
        ConfigError: the model is spread over devices, and a copy would go on calling the modules of the original.
    """
    if spans_devices(model):
        found = "false, and a model that is spread over devices can't be copied as the reference"
        raise ConfigError(Problem("training.precompute_ref_log_probs", found, do="Set it to true"))
    return frozen_copy(model, share=not getattr(args, "sync_ref_model", False))

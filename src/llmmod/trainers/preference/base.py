"""The common base of dpo and kto: a mixin between StageTrainer and trl's class that compares the model with its reference.

trl's loss gets the reference's log-probabilities with the batch. They come

- with a new adapter, from the same model with the adapter off, without a second model;
- with whole weights, from a frozen copy, which shares the layers that are not trained;
- with `training.precompute_ref_log_probs`, from before the training, stored in the run's directory. An adapter that changes the model
  from the start always uses this, since switching it off does not give the model at the start.

trl's means over a batch are weighted by what they are over, so the means over several batches are exact; in an evaluation also those of
several processes, each of which measures its own examples.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from llmmod.errors import ConfigError, Problem
from llmmod.models.packing import packed_attention
from llmmod.trainers.base import StageTrainer
from llmmod.trainers.build import spans_devices
from llmmod.trainers.callbacks.progress import counting
from llmmod.trainers.distributed import PLACEHOLDER, shared_dataloader
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
_GATHERS = ("gather", "gather_for_metrics")


class ReferenceTrainer(StageTrainer):
    """A mixin. The class that has it names the reference's columns and may adapt model and batch for trl's loss.

    Args:
        model: a PreTrainedModel or PeftModel.
        args: trl's.
        train_dataset, eval_dataset: the same object if nothing is trained.
        kwargs: passed to the trl trainer.
    """

    ref_model: Any
    columns: tuple[str, ...]  # the results of `compute_ref_log_probs`, by their names in a batch
    loss_is_scaled_for_ga = True

    def __init__(self, model: Any, args: Any, *, train_dataset: Any, eval_dataset: Any = None, **kwargs: Any) -> None:
        self._adapter = hasattr(model, "peft_config")
        self._off_is_reference = self._adapter and adapter_is_noop(model)
        copied = not self._adapter and not args.precompute_ref_log_probs and train_dataset is not eval_dataset
        no_reference = NoReferenceModel(model.config)
        super().__init__(
            model=model,
            ref_model=_frozen_reference(model, args) if copied else no_reference,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        if not copied:
            self.ref_model = None
            self.accelerator._models[:] = [prepared for prepared in self.accelerator._models if prepared is not no_reference]
        self.precompute_ref_logps = True  # trl's flag for: batches have the reference's log-probabilities
        self._with_logps: dict[int, DatasetWithColumns] = {}
        self._means = {"train": Means(), "eval": Means()}
        self.weights = RowWeights(train_dataset)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train; first compute the reference's log-probabilities, if the reference is not available during training."""
        if self.args.precompute_ref_log_probs or not (self._off_is_reference or self.ref_model is not None):
            earlier = [Path(resume_from_checkpoint).parent] if resume_from_checkpoint else []
            for name, dataset in (("train", self.train_dataset), ("eval", self.eval_dataset)):
                if dataset is not None:
                    self._with_logps[id(dataset)] = DatasetWithColumns(dataset, self._reference_logps_of(dataset, name, earlier))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def with_reference(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch with the reference's log-probabilities.

        Raises:
            ConfigError: whole weights that this trainer did not train are evaluated.
        """
        if self.columns[0] in inputs:
            return inputs
        if self.ref_model is None and not self._adapter:
            found = "evaluate, but whole weights don't come with the reference model that they are compared with"
            raise ConfigError(Problem("pipeline", found, do="Put train before it, whose evaluation has that model, or evaluate an adapter"))
        return inputs | self._reference_logps(inputs)

    def _reference_logps(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The reference's log-probabilities, each [examples]."""
        reference, inputs = self.model if self.ref_model is None else self.ref_model, without_weights(inputs)
        with efficient_head(only=("log_probs",)), packed_attention(reference, inputs):
            found = self.compute_ref_log_probs(self.model_for_trl(reference, inputs), self.batch_for_trl(inputs))
        return {name: values for name, values in zip(self.columns, found, strict=True) if values is not None}

    def model_for_trl(self, model: Any, inputs: dict[str, Any]) -> Any:
        """What trl calls as the model."""
        return model

    def batch_for_trl(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch in the form that trl's loss reads."""
        return inputs

    def add_means(self, weight: float, *, weights: dict[str, float], **more: float) -> None:
        """Add trl's means of the last batch; see `Means.add`.

        Args:
            weight, weights: as there.
            more: further means of the batch.
        """
        mode = "train" if self.model.training else "eval"
        found = self._metrics[mode]
        tokens = found.pop("num_tokens", None)
        self._means[mode].add({name: values[-1] for name, values in found.items()} | more, weight, weights=weights)
        found.clear()
        if tokens and mode == "train":
            found["num_tokens"] = tokens

    def take_means(self) -> dict[str, float]:
        """The means over an evaluation and all processes."""
        means = self._means["eval"]
        means.load(*gather_object([means.state()]))
        return means.take()

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Add a batch to the means of `evaluation_loop`."""
        is_placeholder, before = inputs.pop(PLACEHOLDER, None) is not None, self._means["eval"].state()
        with packed_attention(self.model, inputs), without_gathering(self.accelerator):
            super().prediction_step(model, inputs, True)
        if is_placeholder:
            self._means["eval"].load(before)
        return None, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The library's evaluation, with the loss and trl's metrics over all examples."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in self.take_means().items()})
        return output

    def training_state(self) -> dict[str, Any]:
        """See `ResumableTrainer`; with the means since the last line of the log, and the reference if it follows the model."""
        follows = getattr(self.args, "sync_ref_model", False) and self.ref_model is not None
        reference = self.ref_model.state_dict() if follows else None
        return super().training_state() | {"means": self._means["train"].state(), "reference": reference}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `ResumableTrainer`."""
        super().load_training_state(state)
        self._means["train"].load(state["means"])
        if state["reference"] is not None:
            self.ref_model.load_state_dict(state["reference"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the exact means since the last call."""
        mode = "train" if self.model.training else "eval"
        self._metrics[mode].update({name: [value] for name, value in self._means[mode].take().items()})
        super().log(logs, start_time)

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        dataset, even = self._with_logps.get(id(dataset), dataset), self.accelerator.even_batches
        make: Any = partial(super()._get_dataloader, is_training=is_training, **kwargs)
        if not is_training and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return shared_dataloader(self, dataset, make, *args)  # each process computes as many batches, since it gathers weights for them
        # With even batches, an evaluation would measure some examples twice.
        self.accelerator.even_batches = even and is_training
        try:
            return make(dataset, *args)
        finally:
            self.accelerator.even_batches = even

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # it is tokenized already

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # `train` does it

    def _reference_logps_of(self, dataset: Any, name: str, earlier: list[Path]) -> dict[str, NDArray[np.float32]]:
        """The reference's log-probabilities of a dataset, from the files of an earlier part of this training, or computed.

        Raises:
            ConfigError: the dataset is streamed.
        """
        if not isinstance(dataset, Dataset):
            found = "true, but the end of a streamed dataset is unknown"
            raise ConfigError(Problem("training.precompute_ref_log_probs", found, do="Set it to false"))
        kept, key = self.ref_model, examples_digest(dataset)
        if self._adapter and not self._off_is_reference:
            self.ref_model = self.model  # before the training, it is the reference itself
        try:
            with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
                size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
                loader = DataLoader(dataset, batch_size=size, collate_fn=self.data_collator)  # type: ignore[arg-type]
                batches = self.accelerator.prepare(loader)
                first = self._gathered_logps(next(iter(batches)))
                for directory in (Path(self.args.output_dir), *earlier):
                    if (known := load_reference_logps(directory / reference_logps_file(name), digest=key, first=first)) is not None:
                        log.info("the reference's log-probabilities are those of %s", directory / reference_logps_file(name))
                        return known
                known = self._computed(batches, name, count=len(dataset))
        finally:
            self.ref_model = kept
        if self.args.should_save:
            save_reference_logps(Path(self.args.output_dir) / reference_logps_file(name), known, digest=key)
        return known

    def _computed(self, batches: Any, name: str, *, count: int) -> dict[str, NDArray[np.float32]]:
        parts: dict[str, list[NDArray[np.float32]]] = {}
        with counting(f"reference of {name}", count) as advance:
            for batch in batches:
                for column, values in self._gathered_logps(batch).items():
                    parts.setdefault(column, []).append(values)
                advance(len(values))
        return {column: np.concatenate(found) for column, found in parts.items()}

    def _gathered_logps(self, batch: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
        """The reference's log-probabilities of a batch, of all processes."""
        self.model.eval()
        found = self._reference_logps(self._prepare_inputs(batch))
        return {name: self.accelerator.gather_for_metrics(values).float().cpu().numpy() for name, values in found.items()}


@contextmanager
def without_gathering(accelerator: Any) -> Iterator[None]:
    """A context in which trl's metrics are those of this process only: processes may have different numbers of batches."""
    before = {name: vars(accelerator)[name] for name in _GATHERS if name in vars(accelerator)}
    vars(accelerator).update(dict.fromkeys(_GATHERS, lambda values, *args, **kwargs: values))
    try:
        yield
    finally:
        for name in _GATHERS:
            del vars(accelerator)[name]
        vars(accelerator).update(before)


def _frozen_reference(model: Any, args: Any) -> Any:
    """A frozen copy of the model.

    Raises:
        ConfigError: the model spans several devices; a copy would call the modules of the original.
    """
    if spans_devices(model):
        found = "false, but a model that spans devices can't be copied as the reference"
        raise ConfigError(Problem("training.precompute_ref_log_probs", found, do="Set it to true"))
    return frozen_copy(model, share=not getattr(args, "sync_ref_model", False))

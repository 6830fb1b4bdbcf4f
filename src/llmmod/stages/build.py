"""A stage's trainer, from configuration and the parts that a run has loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llmmod.errors import ConfigError, Problem
from llmmod.instantiate import build
from llmmod.schema.training import StageConf
from llmmod.stages.arguments import refusal
from llmmod.stages.finite import StopWhenNotFinite


def trainer_from(
    conf: StageConf, *, model: Any, args: Any, train: Any, evaluation: Any, tokenizer: Any, callbacks: Sequence[TrainerCallback] = ()
) -> Any:
    """The trainer that `conf.trainer` names, with its collator, the user's callbacks and ours, and the library's own output taken away.

    Args:
        conf: `training.*` as plain Python.
        model: a PreTrainedModel or PeftModel.
        args: as from `training_arguments`.
        train: a datasets.Dataset or IterableDataset of training examples.
        evaluation: held-out examples, or None.
        tokenizer: saved with each checkpoint.
        callbacks: ours.

    Raises:
        ConfigError: if the trainer refuses an argument or a combination of them.
    """
    own = [build(node) for node in conf.callbacks.values() if node]
    collator = build(conf.collator, tokenizer=tokenizer) if conf.collator else None
    try:
        trainer = build(
            conf.trainer,
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            data_collator=collator,
            callbacks=[StopWhenNotFinite(), *callbacks, *own],
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(refusal(error, vars(args))) from error
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    return trainer


def needs_max_steps(conf: Any, train: Any) -> None:
    """Refuse a training without an end.

    Raises:
        ConfigError: if the examples are streamed, so that nobody knows their number, and `training.max_steps` isn't set.
    """
    if not hasattr(train, "__len__") and conf.max_steps <= 0:
        found = "a streamed dataset has no known length, so a number of epochs says nothing"
        raise ConfigError(Problem("training.max_steps", found, do="Set training.max_steps"))

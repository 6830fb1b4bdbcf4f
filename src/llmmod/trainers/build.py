"""A stage's trainer, from configuration and the parts that a run has loaded; and the model given back afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llmmod.config.schema.training import StageConf
from llmmod.data.dataset.packing import capacity_of
from llmmod.errors import ConfigError, Problem, one_line
from llmmod.instantiate import build
from llmmod.models.generation.settings import Reader
from llmmod.trainers.arguments import refusal
from llmmod.trainers.base import KEY as LORAPLUS_KEY
from llmmod.trainers.base import StageTrainer
from llmmod.trainers.callbacks.interrupt import StopWhenNotFinite
from llmmod.trainers.collation import choose_collator, spans_devices
from llmmod.trainers.efficient.head import prepare_head_for_trl
from llmmod.trainers.efficient.layers import compile_layers, drop_compiled
from llmmod.trainers.online.base import OnlineTrainer


def trainer_from(
    conf: StageConf,
    *,
    model: Any,
    args: Any,
    train: Any,
    evaluation: Any,
    tokenizer: Any,
    callbacks: Sequence[TrainerCallback] = (),
    loraplus_lr_ratio: float | None = None,
    reader: Reader | None = None,
) -> Any:
    """The trainer that `conf.trainer` names, with its collator, the user's callbacks and ours, and the library's own output taken away.

    Args:
        conf: `training.*` as plain Python.
        model: a PreTrainedModel or PeftModel.
        args: as from `training_arguments`.
        train: a datasets.Dataset or IterableDataset of training examples, or a PackedDataset.
        evaluation: held-out examples, or None.
        tokenizer: saved with each checkpoint.
        callbacks: ours.
        loraplus_lr_ratio: `finetune.loraplus_lr_ratio`.
        reader: of the completions that a model makes while it trains; None: their texts have what the render writes around them.

    Raises:
        ConfigError: if the trainer refuses an argument or a combination of them, packed examples can't be kept apart, LoRA+ isn't known,
            or one process sees several GPUs.
    """
    _refuse_replicas(model, args)
    prepare_head_for_trl(model)
    own = [build(node) for node in conf.callbacks.values() if node]
    collator = _collator(conf, model=model, args=args, train=train, tokenizer=tokenizer)
    try:
        with _own_types(model):
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
    except RuntimeError as error:
        if "to be installed" not in str(error):
            raise
        raise ConfigError(Problem("training.report_to", one_line(error))) from error
    _set_loraplus(trainer, loraplus_lr_ratio)
    if reader is not None and isinstance(trainer, OnlineTrainer):
        trainer.reader = reader
    if _compiles(conf):
        _compile(model, conf, fixed=capacity_of(train) is not None)
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    return trainer


def _refuse_replicas(model: Any, args: Any) -> None:
    """Refuse what the Trainer would make an `nn.DataParallel` of: a model that isn't spread over the several GPUs one process sees.

    Its replicas would each compute a part of the rows with what is hung on the one model: a hook that picks rows of the whole batch (ppo),
    a `forward` bound to the original (trl), an adapter that is switched. trl's trainers refuse it too, after they have prepared everything.
    """
    if args.n_gpu > 1 and not spans_devices(model):
        found = f"one process sees {args.n_gpu} GPUs, and would train copies of the model in its threads (nn.DataParallel)"
        start = f"Start a process a GPU: torchrun --nproc-per-node={args.n_gpu} -m llmmod …; or show it one: CUDA_VISIBLE_DEVICES=0"
        raise ConfigError(Problem("training", found, do=start))


@contextmanager
def _own_types(model: Any) -> Iterator[None]:
    """Within it, what is trained keeps its type and its bits.

    trl 1.16 rounds adapters on quantized weights to bfloat16. An update of less than a 256th of a weight is lost in it: at a rate of 2e-4,
    nearly all of those that Adam makes.
    """
    own = {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
    yield
    for parameter, data in own.items():
        if parameter.dtype != data.dtype:
            parameter.data = data.to(parameter.device)


def _collator(conf: StageConf, *, model: Any, args: Any, train: Any, tokenizer: Any) -> Any:
    return choose_collator(
        conf.collator,
        model=model,
        tokenizer=tokenizer,
        train=train,
        pad_to_multiple_of=getattr(args, "pad_to_multiple_of", None),
        fixed_rows=args.train_batch_size if _compiles(conf) else None,
        trainer=conf.trainer.get("_target_"),
    )


def _compiles(conf: Any) -> bool:
    return bool(getattr(conf, "torch_compile", False))


def _compile(model: Any, conf: Any, *, fixed: bool) -> None:
    compile_layers(model, backend=conf.torch_compile_backend, mode=conf.torch_compile_mode, fixed=fixed)


def _set_loraplus(trainer: Any, ratio: float | None) -> None:
    if isinstance(trainer, StageTrainer):
        trainer.loraplus_lr_ratio = ratio
    elif ratio is not None:
        found = f"{ratio:g}, but {type(trainer).__name__} makes an optimizer of its own"
        raise ConfigError(Problem(LORAPLUS_KEY, found, do="Derive it from llmmod.trainers.base.StageTrainer"))


@contextmanager
def restored_after_training(model: Any) -> Iterator[None]:
    """Lend a model to a trainer: after the block it is as it was but for its weights, ready to answer, and without gradients.

    trl takes all dropout out of a model that it compares with a reference, and turns gradient checkpointing on; both would last.

    trl and accelerate put a `forward` of their own on the model. A deep copy of such a model would go on computing with the weights of
    the original (trl 1.16: the copy's `forward` holds the original's), and autocast would wrap it once more with every trainer. The
    Trainer also turns `use_cache` off in the model's config: saved so, it would answer slowly ever after.
    """
    holders = [model, model.get_base_model()] if hasattr(model, "peft_config") else [model]
    hung = [{name: vars(holder)[name] for name in _HUNG if name in vars(holder)} for holder in holders]
    use_cache, checkpointing = model.config.use_cache, model.is_activation_checkpointing
    dropout = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    try:
        yield
    finally:
        for holder, before in zip(holders, hung, strict=True):
            for name in _HUNG:
                vars(holder).pop(name, None)
            vars(holder).update(before)
        drop_compiled(model)
        model.config.use_cache = use_cache
        if model.is_activation_checkpointing and not checkpointing:
            model.activation_checkpointing_disable()
        for module, probability in dropout:
            module.p = probability
        model.zero_grad(set_to_none=True)
        model.eval()


_HUNG = ("forward", "_original_forward")


def release(trainer: Any) -> None:
    """Let go of what only training needs: the optimizer's state, the schedule, accelerate's hold on the model, and what a stage holds."""
    if isinstance(trainer, StageTrainer):
        trainer.release()
    for holder in (trainer, trainer.callback_handler):
        holder.optimizer = holder.lr_scheduler = None
    trainer.accelerator.free_memory()


def check_max_steps(conf: Any, train: Any) -> None:
    """Refuse a training without an end.

    Raises:
        ConfigError: if the examples are streamed, so that nobody knows their number, and `training.max_steps` isn't set.
    """
    if not hasattr(train, "__len__") and conf.max_steps <= 0:
        found = "a streamed dataset has no known length, so a number of epochs says nothing"
        raise ConfigError(Problem("training.max_steps", found, do="Set training.max_steps"))

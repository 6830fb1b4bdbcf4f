"""Build the trainer of a stage and its collator from their configuration, and restore the model after the trainer has changed it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llmmod.config.schema.training import StageConf
from llmmod.data import collators
from llmmod.data.dataset.packing import capacity_of
from llmmod.errors import ConfigError, Problem, one_line
from llmmod.instantiate import build, locate
from llmmod.models.generation.settings import Reader
from llmmod.models.loading.structure import base_model
from llmmod.models.packing import why_not_packed
from llmmod.trainers.arguments import refusal
from llmmod.trainers.base import LORAPLUS_KEY, StageTrainer
from llmmod.trainers.callbacks.interrupt import StopWhenNotFinite, StopWhenPruned
from llmmod.trainers.efficient import compile_layers, drop_compiled

log = logging.getLogger("llmmod.train")

# A collator that puts a whole batch into one row -> the one that pads.
_PADDING: Mapping[Any, type[collators.PaddingCollator | collators.PreferenceCollator | collators.RewardCollator]] = {
    collators.FlatteningCollator: collators.PaddingCollator,
    collators.PrefixSharingCollator: collators.PreferenceCollator,
    collators.PrefixSharingRewardCollator: collators.RewardCollator,
}
_PATCHED = ("forward", "_original_forward")  # what trl and accelerate set on a model


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
    """The trainer that `conf.trainer` names, with its collator, the user's callbacks and ours; the library's own output is off.

    Args:
        conf: `training.*` as plain Python.
        model: a PreTrainedModel or PeftModel.
        args: from `training_arguments`.
        train: a datasets.Dataset or IterableDataset of training examples, or a PackedDataset.
        evaluation: held-out examples, or None.
        tokenizer: saved with each checkpoint.
        callbacks: ours.
        loraplus_lr_ratio: `finetune.loraplus_lr_ratio`.
        reader: decodes the completions that the model writes while it trains; None: they keep the text that the render writes around them.

    Raises:
        ConfigError: the trainer refuses an argument or a combination of arguments, packed examples can't be kept apart, the trainer can't
            do LoRA+, or one process sees several GPUs.
    """
    _refuse_data_parallel(model, args)
    _prepare_head_for_trl(model)
    compiles = bool(getattr(conf, "torch_compile", False))
    batches = {"pad_to_multiple_of": getattr(args, "pad_to_multiple_of", None), "trainer": conf.trainer.get("_target_")}
    batches["fixed_rows"] = args.train_batch_size if compiles else None
    collator = choose_collator(conf.collator, model=model, tokenizer=tokenizer, train=train, **batches)
    users = [build(node) for node in conf.callbacks.values() if node]
    parts = {"model": model, "args": args, "train_dataset": train, "eval_dataset": evaluation, "processing_class": tokenizer}
    parts |= {"data_collator": collator, "callbacks": [StopWhenNotFinite(), StopWhenPruned(), *callbacks, *users]}
    try:
        with _trained_dtypes_kept(model):
            trainer = build(conf.trainer, **parts)
    except (ValueError, ImportError) as error:
        raise ConfigError(refusal(error, vars(args))) from error
    except RuntimeError as error:
        if "to be installed" not in str(error):
            raise
        raise ConfigError(Problem("training.report_to", one_line(error))) from error
    _set_loraplus(trainer, loraplus_lr_ratio)
    if reader is not None and isinstance(trainer, StageTrainer):
        trainer.reader = reader
    if compiles:
        fixed = capacity_of(train) is not None
        compile_layers(model, backend=conf.torch_compile_backend, mode=conf.torch_compile_mode, fixed=fixed)  # type: ignore[attr-defined]
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    return trainer


def choose_collator(
    node: Mapping[str, Any],
    *,
    model: Any,
    tokenizer: Any,
    train: Any,
    pad_to_multiple_of: int | None = None,
    fixed_rows: int | None = None,
    trainer: str | None = None,
) -> Any:
    """The collator that a configuration names, or its padding counterpart if the model mixes the examples of a row; None if not named.

    Args:
        node: `training.collator`.
        model: decides whether the examples of a row stay separate.
        tokenizer, train: as in `trainer_from`.
        pad_to_multiple_of: `training.pad_to_multiple_of`, tokens.
        fixed_rows: packed rows of a batch, if all batches must have the same shape; None: shapes may differ.
        trainer: the trainer's class, `training.trainer._target_`; None: one of ours.

    Raises:
        ConfigError: the examples are packed, and the model, the trainer or the collator can't keep them apart.
    """
    if not node:
        return None
    check_trainer(trainer, train)
    collator, packed = locate(node["_target_"]), capacity_of(train) is not None
    flattens, reason = collator in _PADDING, None
    if flattens and pad_to_multiple_of is not None:
        reason = "training.pad_to_multiple_of asks for padding"
    elif flattens:
        reason = _why_trainer_mixes(trainer) or why_not_packed(model, branches=collator is not collators.FlatteningCollator, packed=packed)
    elif collator is collators.PaddingCollator and packed:
        reason = "training.collator=PaddingCollator treats a row as one example"
    if reason is not None and packed:
        raise ConfigError(Problem("dataset.packing", f"true, and {reason}", do="Set it to false"))
    arguments: dict[str, Any] = {} if pad_to_multiple_of is None else {"pad_to_multiple_of": pad_to_multiple_of}
    if reason is not None:
        log.info("batches are padded: %s", reason)
        return _PADDING[collator](tokenizer, **arguments)
    if packed and fixed_rows is not None:
        arguments["length"] = fixed_rows * train.capacity
    return build(node, tokenizer=tokenizer, **arguments)


def check_trainer(trainer: str | None, train: Any) -> None:
    """Refuse a trainer in which packed examples would see each other.

    Args:
        trainer, train: as in `choose_collator`.

    Raises:
        ConfigError: the examples are packed, and the class is not derived from ours.
    """
    if capacity_of(train) is not None and (reason := _why_trainer_mixes(trainer)):
        do = "Derive it from llmmod.trainers.base.StageTrainer, or set dataset.packing=false"
        raise ConfigError(Problem("training.trainer._target_", f"{reason}, and dataset.packing is true", do=do))


def _why_trainer_mixes(trainer: str | None) -> str | None:
    """The reason why the examples of a row see each other in this trainer; None if they don't."""
    found = StageTrainer if trainer is None else locate(trainer)
    ours = isinstance(found, type) and issubclass(found, StageTrainer)
    return None if ours else f"{trainer} doesn't keep the examples of a row apart"


def _prepare_head_for_trl(model: Any) -> None:
    """Give a model, in place, the attributes that trl (1.16) reads around its head, where transformers (5.23) names them differently.

    peft's wrapper of a head with `trainable_token_indices` passes on the weight only; Llama 4's text model has another prefix for its
    trunk; Phi-3.5-MoE's configuration has `num_local_experts` but not `num_experts`.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and not hasattr(head, "bias"):
        head.bias = None
    plain: Any = base_model(model)
    trunk: Any = getattr(plain, "base_model", None)
    if trunk is plain and hasattr(plain, "model"):
        plain.base_model_prefix = "model"
    config = plain.config.get_text_config() if hasattr(plain.config, "get_text_config") else plain.config
    if hasattr(config, "num_local_experts") and not hasattr(config, "num_experts"):
        type(config).attribute_map = {**type(config).attribute_map, "num_experts": "num_local_experts"}  # an alias; it is not saved


def _set_loraplus(trainer: Any, ratio: float | None) -> None:
    if isinstance(trainer, StageTrainer):
        trainer.loraplus_lr_ratio = ratio
    elif ratio is not None:
        found = f"{ratio:g}, but {type(trainer).__name__} makes its own optimizer"
        raise ConfigError(Problem(LORAPLUS_KEY, found, do="Derive it from llmmod.trainers.base.StageTrainer"))


def _refuse_data_parallel(model: Any, args: Any) -> None:
    """Refuse several GPUs in one process, unless the model spans them: the Trainer would wrap it in `nn.DataParallel`.

    Its replicas would use parts of the original model: a hook that picks rows of the whole batch (ppo), a `forward` bound to the original
    (trl), an adapter that is switched. trl's trainers refuse it too, but only after all preparation.
    """
    if args.n_gpu > 1 and not spans_devices(model):
        found = f"one process sees {args.n_gpu} GPUs, and would train copies of the model in its threads (nn.DataParallel)"
        start = f"Start a process for each GPU: torchrun --nproc-per-node={args.n_gpu} -m llmmod …; or use one: CUDA_VISIBLE_DEVICES=0"
        raise ConfigError(Problem("training", found, do=start))


@contextmanager
def _trained_dtypes_kept(model: Any) -> Iterator[None]:
    """A context in which trained parameters keep their dtype and their bits.

    trl 1.16 rounds adapters on quantized weights to bfloat16. An update of less than a 256th of a weight is lost in it: at a rate of 2e-4,
    nearly all of Adam's updates.
    """
    before = {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
    yield
    for parameter, data in before.items():
        if parameter.dtype != data.dtype:
            parameter.data = data.to(parameter.device)


@contextmanager
def restored_after_training(model: Any) -> Iterator[None]:
    """A context in which a trainer may change the model; then only its weights differ, and it is in evaluation mode.

    trl sets all dropout to 0 in a model that it compares with a reference, and turns gradient checkpointing on. trl and accelerate replace
    `forward`: a deep copy of such a model would compute with the weights of the original (trl 1.16), and each trainer would wrap autocast
    around it once more. The Trainer turns `use_cache` off in the model's config; saved like that, the model would generate slowly.
    """
    holders = [model, model.get_base_model()] if hasattr(model, "peft_config") else [model]
    patched = [{name: vars(holder)[name] for name in _PATCHED if name in vars(holder)} for holder in holders]
    use_cache, checkpointing = model.config.use_cache, model.is_activation_checkpointing
    dropout = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    hooks = [model.register_forward_hook(_return_outputs, with_kwargs=True)] if spans_devices(model) else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for holder, before in zip(holders, patched, strict=True):
            for name in _PATCHED:
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


def _return_outputs(model: Any, args: Any, inputs: Mapping[str, Any], outputs: Any) -> None:
    """Move the outputs of a model that spans devices to the device of its input, where labels and losses are.

    accelerate's own hook does it, but trl 1.16 replaces the `forward` that has it.
    """
    given = next((value for value in (*args, *inputs.values()) if isinstance(value, torch.Tensor)), None)
    if given is None or not isinstance(outputs, MutableMapping):
        return
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor) and value.device != given.device:
            outputs[name] = value.to(given.device)


def release(trainer: Any) -> None:
    """Free what only training needs: the optimizer's state, the schedule, accelerate's references to the model, the stage's own parts."""
    if isinstance(trainer, StageTrainer):
        trainer.release()
    for holder in (trainer, trainer.callback_handler):
        holder.optimizer = holder.lr_scheduler = None
    trainer.accelerator.free_memory()


def check_max_steps(conf: Any, train: Any) -> None:
    """Refuse a training without an end.

    Raises:
        ConfigError: the examples are streamed, so that their number is unknown, and `training.max_steps` isn't set.
    """
    if not hasattr(train, "__len__") and conf.max_steps <= 0:
        found = "the length of a streamed dataset is unknown, so a number of epochs is not enough"
        raise ConfigError(Problem("training.max_steps", found, do="Set training.max_steps"))


def spans_devices(model: Any) -> bool:
    """Whether the parts of a model are on several devices (`model.device_map`), or offloaded to memory or the disk."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def prepare_for_inference(model: Any, *, use_cpu: bool = False) -> Any:
    """The same model in evaluation mode; moved to this process's accelerator, if it has one and the model has not been placed yet.

    Args:
        model: a PreTrainedModel or PeftModel.
        use_cpu: don't use an accelerator, as `training.use_cpu` asks.
    """
    placed = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False) or model.device.type != "cpu"
    if torch.accelerator.is_available() and not use_cpu and not placed:
        kind = torch.accelerator.current_accelerator()
        assert kind is not None  # is_available() is true
        # accelerate assigns devices to processes in the same way; several processes may share one.
        number = int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count()
        model.to(torch.device(kind.type, number))
    return model.eval()

"""Sets up a model for training: a function for each option of `finetune`, from model and configuration to a model ready to train.

`setup_full` trains every weight, `setup_freeze` some layers or modules in them, `setup_lora` adapters on frozen weights; `setup_inference`
adds a configuration's adapters to a model that isn't trained.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import peft

from llmmod.config.schema.base import TrainableDtype
from llmmod.config.schema.model import FinetuneConf, FreezeConf, FullConf, LoraConf
from llmmod.errors import ConfigError, Problem, did_you_mean, one_line
from llmmod.models.adapters.base_changing_init import loftq_anywhere, remember_initial
from llmmod.models.adapters.load import load_adapter, merge_adapters, save_adapter_alone
from llmmod.models.adapters.lora import check_made, check_names, fitted_to_stand_in, lora_config, quiet_peft, without_refused
from llmmod.models.adapters.merge import use_stacked_norms
from llmmod.models.adapters.precision import check_trained_in_16_bits, hold_master_weights, upcast_head, upcast_norms
from llmmod.models.families.convert import native_targets
from llmmod.models.families.native import warn_of_trained_head
from llmmod.models.loading.quantization import is_quantized, with_float32_parts
from llmmod.models.loading.structure import base_model, count_parameters, decoder_layers
from llmmod.models.loading.tiny import STAND_IN
from llmmod.models.reward import HEAD, is_reward_model

ALL = "all"  # of `finetune.name_module_trainable`: every module of a layer

log = logging.getLogger(__name__)


def setup_full(model: Any, conf: FullConf) -> Any:
    """The model with every weight trained.

    Raises:
        ConfigError: its weights are quantized.
    """
    _refuse_quantized(model, "full")
    model = merge_adapters(model, conf.adapters).requires_grad_(True)
    return _ready(model, conf)


def setup_freeze(model: Any, conf: FreezeConf) -> Any:
    """The model with some of its layers trained, all of each or only modules within, and the rest frozen.

    Raises:
        ConfigError: names that the model doesn't have, or no parameters to train.
    """
    _refuse_quantized(model, "freeze")
    model = merge_adapters(model, conf.adapters)
    count = conf.num_layers_trainable
    if getattr(model, STAND_IN, False):
        depth = len(decoder_layers(model)[1])
        count = max(-depth, min(count, depth))
    heads = [HEAD] if is_reward_model(model) else []  # a new one has to be trained
    freeze_layers(model, count, modules=conf.name_module_trainable, extra=[*conf.extra_trainable, *heads])
    return _ready(model, conf)


def setup_lora(model: Any, conf: LoraConf) -> Any:
    """The frozen model with low-rank adapters on its linear layers (Hu et al. 2021).

    The adapters are in float32 for any dtype of the weights. `conf.adapters` are merged first, or stay active on quantized weights; with
    `conf.resume_adapter` all but the last, which is trained further.

    Returns:
        A peft.PeftModel.

    Raises:
        ConfigError: target modules that the model doesn't have, or adapters that don't fit it.
    """
    model = with_float32_parts(model)
    if conf.resume_adapter and not conf.adapters:
        raise ConfigError(Problem("finetune.resume_adapter", "true, but finetune.adapters is empty", do="Name it in finetune.adapters"))
    if conf.resume_adapter:
        adapted = load_adapter(merge_adapters(model, conf.adapters[:-1]), conf.adapters[-1], trainable=True)
    else:
        adapted = _new_adapter(merge_adapters(model, conf.adapters), conf)
    if model.is_activation_checkpointing:
        # Checkpointing recomputes from a layer's input, which must require gradients although the embeddings are frozen.
        adapted.enable_input_require_grads()
    return _ready(adapted, conf)


def setup_inference(model: Any, conf: FinetuneConf) -> Any:
    """A model for inference: the adapters of its configuration merged in order, the last one active on the weights.

    A quantized model computes as in the training of the adapters: with all earlier ones active, and norms and embeddings in float32.

    Returns:
        A PeftModel in evaluation mode, or without adapters the model itself.

    Raises:
        ConfigError: as `setup_lora`.
    """
    if not conf.adapters:
        return model
    *earlier, last = conf.adapters
    return load_adapter(merge_adapters(with_float32_parts(model), earlier), last, key=f"finetune.adapters[{len(earlier)}]")


def freeze_layers(model: Any, count: int, *, modules: Sequence[str] = (ALL,), extra: Sequence[str] = ()) -> list[str]:
    """Freeze a model except some layers.

    Args:
        model: changed in place.
        count: layers to train: the last `count`, or the first `-count` if it is negative.
        modules: the trained modules or parameters of these layers by name, or `all`. A name must be a whole part of a dotted name: `mlp`
            matches `layers.0.mlp.up_proj`, but not a part that only contains it.
        extra: names outside of the layers to train as well, e.g. `norm`, `lm_head`, `embed_tokens`.

    Returns:
        The names of the parameters that are trained.

    Raises:
        ConfigError: more layers than the model has, none, or names that don't exist.
    """
    prefix, layers = decoder_layers(model)
    chosen = _chosen_layers(count, len(layers))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    inside = {name: name.removeprefix(f"{prefix}.").split(".") for name in parameters if name.startswith(f"{prefix}.")}
    outside = {name: name.split(".") for name in parameters if name not in inside}
    _check_modules(modules, (parts[1:] for parts in inside.values()), key="finetune.name_module_trainable", also=ALL)
    _check_modules(extra, outside.values(), key="finetune.extra_trainable")
    trained = [name for name, (number, *own) in inside.items() if int(number) in chosen and (ALL in modules or set(modules) & set(own))]
    trained += [name for name, parts in outside.items() if set(extra) & set(parts)]
    model.requires_grad_(False)
    for name in trained:
        parameters[name].requires_grad_(True)
    return trained


def _chosen_layers(count: int, depth: int) -> range:
    key = "finetune.num_layers_trainable"
    if count == 0:
        raise ConfigError(Problem(key, "0 layers would be trained", "n > 0: the last n; n < 0: the first |n|"))
    if abs(count) > depth:
        raise ConfigError(Problem(key, f"{count}, but the model has {depth} layers", f"Allowed: -{depth} to {depth}, not 0"))
    return range(depth - count, depth) if count > 0 else range(-count)


def _check_modules(names: Sequence[str], paths: Iterable[Sequence[str]], *, key: str, also: str = "") -> None:
    """Refuse names that aren't a part of a parameter's dotted name."""
    known = {part for path in paths for part in path} - {"weight", "bias"} | ({also} if also else set())
    listed = f"Allowed: {', '.join(sorted(known))}"
    near = {name: did_you_mean(name, known) for name in names if name not in known}
    if near:
        raise ConfigError(
            Problem(key, f"'{name}' is not a module", text if text.startswith("Allowed") else f"{text} {listed}".strip())
            for name, text in near.items()
        )


def _new_adapter(model: Any, conf: LoraConf) -> Any:
    """A PeftModel around `model` with an untrained adapter."""
    named = ("target_modules", "exclude_modules", "modules_to_save")  # may have names of a family's original code
    conf = replace(conf, **{name: native_targets(model, getattr(conf, name), key=f"finetune.{name}") for name in named})
    if is_reward_model(model):
        conf = replace(conf, task_type="SEQ_CLS", modules_to_save=[*(conf.modules_to_save or []), HEAD])
    conf = without_refused(model, fitted_to_stand_in(model, conf))
    check_names(model, conf)
    own, config = copy.copy(conf.modules_to_save), lora_config(conf)
    try:
        with quiet_peft(), loftq_anywhere():
            adapted = peft.get_peft_model(model, config)
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(Problem("finetune", f"peft can't make these adapters: {one_line(error)}")) from error
    check_made(adapted, conf)
    # For a reward model, peft adds its own names of heads to the list, `score` again.
    adapted.peft_config["default"].modules_to_save = own
    save_adapter_alone(adapted)
    remember_initial(adapted)
    use_stacked_norms(adapted, new=True)
    return adapted


def _ready(model: Any, conf: FinetuneConf) -> Any:
    if conf.trainable_dtype is TrainableDtype.float32:
        hold_master_weights(model)
    else:
        check_trained_in_16_bits(model)
    if conf.upcast_layernorm:
        upcast_norms(model)
    if conf.upcast_head:
        upcast_head(model)
    count = count_parameters(model)
    if count.trained == 0:
        raise ConfigError(Problem("finetune", "none of the model's parameters would be trained"))
    warn_of_trained_head(base_model(model))
    log.info("%s", count)
    return model


def _refuse_quantized(model: Any, name: str) -> None:
    if is_quantized(model):
        do = "Use finetune=qlora, or model.quantization.bits=null"
        raise ConfigError(Problem("model.quantization.bits", f"quantized weights can't be trained with finetune={name}", do=do))

"""What of a model is trained: `finetune`'s ways, each a function of model and configuration that gives a model ready to train.

How many parameters a model has, and how many of them are trained.
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import peft

from llmmod.config.schema.base import TrainableDtype
from llmmod.config.schema.finetune import FinetuneConf, FreezeConf, FullConf, LoraConf
from llmmod.errors import ConfigError, Problem, one_line
from llmmod.models.adapters.freeze import decoder_layers, freeze_layers
from llmmod.models.adapters.init import loftq_anywhere, remember_initial
from llmmod.models.adapters.load import load_adapter, merge_adapters, save_adapter_alone
from llmmod.models.adapters.lora import check_made, check_names, fitted_to_stand_in, lora_config, quiet_peft, without_refused
from llmmod.models.adapters.master_weights import check_trained_in_16_bits, hold_master_weights
from llmmod.models.adapters.merge import use_stacked_norms
from llmmod.models.adapters.upcast import upcast_head, upcast_norms
from llmmod.models.families.limits import warn_of_trained_head
from llmmod.models.families.names import native_targets
from llmmod.models.loading.quantization import is_quantized, with_float32_parts
from llmmod.models.loading.tiny import STAND_IN
from llmmod.models.reward import HEAD, is_reward_model


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters, each shared one counted once.

    Args:
        trained: those that take gradients.
        total: all.
    """

    trained: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trained / self.total if self.total else 0.0
        return f"{self.trained:,} of {self.total:,} parameters are trained ({share:.2f} %)"


def count_parameters(model: Any) -> ParameterCount:
    """The numbers of a model's parameters, quantized ones by what they stand for rather than by the bytes that hold them."""
    sizes = [(_size(p), p.requires_grad) for p in model.parameters()]
    return ParameterCount(trained=sum(n for n, trained in sizes if trained), total=sum(n for n, _ in sizes))


def _size(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)  # of bitsandbytes.nn.Params4bit: two weights a byte
    return math.prod(state.shape) if state is not None else parameter.numel()


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
        ConfigError: names that the model doesn't have, or nothing left to train.
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
    """The model frozen, with low-rank adapters beside its linear layers (Hu et al. 2021).

    The adapters are in float32, whatever the weights are in. `conf.adapters` are merged first, or stay active beside quantized weights;
    with `conf.resume_adapter` all but the last, which goes on training as it is.

    Returns:
        A peft.PeftModel.

    Raises:
        ConfigError: target modules that the model doesn't have, or adapters that don't fit it.
    """
    model = with_float32_parts(model)
    if conf.resume_adapter and not conf.adapters:
        raise ConfigError(Problem("finetune.resume_adapter", "there is no adapter to go on with", do="Name it in finetune.adapters"))
    resumed = conf.adapters[-1] if conf.resume_adapter and conf.adapters else None
    model = merge_adapters(model, conf.adapters[:-1] if resumed else conf.adapters)
    if resumed is not None:
        adapted = load_adapter(model, resumed, trainable=True)
    else:
        conf = _with_native_names(conf, model)
        if is_reward_model(model):
            conf = replace(conf, task_type="SEQ_CLS", modules_to_save=[*(conf.modules_to_save or []), HEAD])
        conf = without_refused(model, fitted_to_stand_in(model, conf))
        check_names(model, conf)
        adapted = save_adapter_alone(_new_adapter(model, conf))
        remember_initial(adapted)
        use_stacked_norms(adapted, new=True)
    if model.is_activation_checkpointing:
        # Checkpointing recomputes from a layer's input, which must take gradients though the embeddings under it are frozen.
        adapted.enable_input_require_grads()
    return _ready(adapted, conf)


def _new_adapter(model: Any, conf: LoraConf) -> Any:
    own = copy.copy(conf.modules_to_save)
    config = lora_config(conf)
    try:
        with quiet_peft(), loftq_anywhere():
            adapted = peft.get_peft_model(model, config)
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(Problem("finetune", f"peft can't make these adapters: {one_line(error)}")) from error
    check_made(adapted, conf)
    # Of a reward model peft adds its own names of heads to the list, `score` once more.
    adapted.peft_config["default"].modules_to_save = own
    return adapted


def setup_inference(model: Any, conf: FinetuneConf) -> Any:
    """A model as it is used rather than trained: the adapters of its configuration merged in order, the last one kept apart.

    Quantized, it computes as it did while the adapters were trained: with all earlier ones active, and norms and embeddings in float32.

    Returns:
        A PeftModel in evaluation mode, or the model itself where there are no adapters.

    Raises:
        ConfigError: as `setup_lora`.
    """
    if not conf.adapters:
        return model
    model = with_float32_parts(model)
    return load_adapter(merge_adapters(model, conf.adapters[:-1]), conf.adapters[-1], key=f"finetune.adapters[{len(conf.adapters) - 1}]")


def _with_native_names(conf: LoraConf, model: Any) -> LoraConf:
    """The configuration with module names of a family's original code replaced by those of the class it is loaded as."""
    fields = ("target_modules", "exclude_modules", "modules_to_save")
    return replace(conf, **{name: native_targets(model, getattr(conf, name), key=f"finetune.{name}") for name in fields})


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
        raise ConfigError(Problem("finetune", "nothing of the model would be trained"))
    warn_of_trained_head(model)
    log.info("%s", count)
    return model


def _refuse_quantized(model: Any, name: str) -> None:
    if is_quantized(model):
        do = "Use finetune=qlora, or model.quantization.bits=null"
        raise ConfigError(Problem("model.quantization.bits", f"quantized weights can't be trained by finetune={name}", do=do))
